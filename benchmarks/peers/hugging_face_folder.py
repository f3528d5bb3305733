"""A GGUF file as a Hugging Face folder in bfloat16, for peers that read no GGUF. Run with build_openvino.sh's python.

python hugging_face_folder.py MODEL.gguf FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers


def main() -> None:
    file, folder = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    place = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(**place).save_pretrained(folder)


if __name__ == "__main__":
    main()
