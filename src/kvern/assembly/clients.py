"""The client's half of a model: its text side, and a client of an engine that is yet to be started."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from kvern.assembly.engine import EngineOptions, build_engine
from kvern.assembly.model import open_model
from kvern.core.errors import ConfigError
from kvern.engine.client import ClientLimits, SocketEngineClient
from kvern.engine.launch import ProcessEngine, ThreadEngine
from kvern.weights.chat_template import ChatTemplate, chat_template_from_file
from kvern.weights.hub import resolve
from kvern.weights.tokenizer import Tokenizer


@dataclass(frozen=True)
class TextSide:
    """``template`` is None when the model has none. ``sampling_defaults`` are arguments of ``SamplingParams``."""

    tokenizer: Tokenizer
    template: ChatTemplate | None
    sampling_defaults: dict[str, float] = field(default_factory=dict)

    def close(self) -> None:
        """End the template's worker process."""
        if self.template is not None:
            self.template.close()


def open_text(path: Path, chat_template: str | None = None) -> TextSide:
    """Tokenizer, template and sampling defaults of a model. ``chat_template`` is a file to use instead of its own.

    Raises ModelFileError, and ConfigError when the template file is not there.
    """
    with closing(open_model(path)) as model:
        tokenizer = model.tokenizer()
        if chat_template is None:
            template = model.chat_template(tokenizer)
        elif Path(chat_template).is_file():
            template = chat_template_from_file(Path(chat_template), tokenizer)
        else:
            raise ConfigError(f"chat_template: there is no file {chat_template!r}")
        defaults = {name: value for name, value in asdict(model.spec.sampling).items() if value is not None}
    return TextSide(tokenizer, template, defaults)


def state_folder() -> Path:
    """Where kvern keeps what a run leaves behind: ``$XDG_STATE_HOME/kvern``, else ``~/.local/state/kvern``."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "kvern"


def make_client(
    options: EngineOptions,
    *,
    embed: bool = False,
    progress: Callable[[int, int], None] | None = None,
    limits: ClientLimits | None = None,
) -> SocketEngineClient:
    """A client whose ``start`` brings the engine up: a process of its own, or (``embed``) a thread of this one.

    ``options.model`` is whatever ``weights.hub.resolve`` takes. ``progress`` is told bytes of weights ready, and all.
    Raises ModelFileError when the model is not there.
    """
    options = msgspec.structs.replace(
        options, model=str(resolve(options.model)), name=options.name or Path(options.model).stem
    )
    launch = (
        ThreadEngine.launcher(partial(build_engine, options)) if embed else ProcessEngine.launcher(options.as_json())
    )
    return SocketEngineClient(launch, progress=progress, limits=limits)
