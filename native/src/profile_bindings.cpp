// Python's view of a program's profile: records as dictionaries.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "program.h"
#include "stages.h"

namespace nb = nanobind;

namespace kvern {
namespace {

constexpr const char* STAGES[] = {"rows", "linear", "linear add", "gated", "attend", "logits"};
constexpr const char* CHAINS[] = {"embedding", "attention", "feed-forward", "head"};

const char* name_of(Format format) {
#define KVERN_NAME(name) #name,
    static constexpr const char* NAMES[] = {KVERN_WEIGHT_FORMATS(KVERN_NAME)};
#undef KVERN_NAME
    return NAMES[static_cast<int>(format)];
}

nb::list take_profile(Program& model) {
    nb::list records;
    for (const Note& note : model.profile().take()) {
        nb::dict record;
        record["operation"] = STAGES[note.stage];
        record["unit"] = CHAINS[note.chain];
        record["format"] = note.format < 0 ? "" : name_of(static_cast<Format>(note.format));
        record["rows"] = note.rows;
        record["calls"] = note.calls;
        record["nanoseconds"] = note.nanoseconds;
        record["bytes"] = note.bytes;
        record["operations"] = note.operations;
        records.append(record);
    }
    return records;
}

}  // namespace

void register_profile(nb::class_<Program>& model) {
    model
        .def(
            "profile", [](Program& self, bool on) { self.profile().turn(on); }, nb::arg("on"),
            "Time the parts of every later step (False: stop). Off at first, and then costs nothing.")
        .def("take_profile", &take_profile,
             "What was timed since the last call, summed per operation, unit, format and rows, as a list of\n"
             "dictionaries:\n"
             "  operation    'rows' (norms, encoding, head norms), 'linear', 'linear add' (and the residual),\n"
             "               'gated' (gate, up, activation and, for codes by groups, encoding), 'attend' (append\n"
             "               and attention), 'logits'\n"
             "  unit         'embedding', 'attention', 'feed-forward' or 'head'\n"
             "  format       of the (first) weight; '' where there is none\n"
             "  rows         of the whole step that took part\n"
             "  calls        how often it ran\n"
             "  nanoseconds  wall time, its barrier included; where workers run whole chains over rows of their\n"
             "               own, the mean over the workers\n"
             "  bytes        of weights (attend: of K and V) that the calls read, each counted once a call\n"
             "  operations   multiplications and additions of linears, or of attention's two products\n"
             "Over `nanoseconds`, `bytes` is to be held against the stream bandwidth and `operations` against the\n"
             "peak of the instructions used.");
}

}  // namespace kvern
