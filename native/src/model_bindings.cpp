// Python's view of a program: `Operation`, `Model`; see src/kvern/kernels/cpu/.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "array_arguments.h"
#include "program.h"

namespace nb = nanobind;

namespace kvern {
namespace {

template <class T>
T field(nb::handle object, const char* name) {
    T value{};
    if (!nb::try_cast<T>(object.attr(name), value))
        throw std::invalid_argument(std::string("program field '") + name + "' has the wrong type");
    return value;
}

void make_operation(Operation* self, int code, const std::vector<int32_t>& slots, int32_t weight, int32_t vector,
                    int32_t parts, float value) {
    if (code < 0 || code > static_cast<int>(OpCode::add) || slots.size() != 5)
        throw std::invalid_argument("operation needs a known code and five slots (a, b, c, out, layer)");
    new (self) Operation{
        static_cast<OpCode>(code), slots[0], slots[1], slots[2], slots[3], weight, vector, slots[4], parts, value};
}

// The activation format `name` ("": the weight format's own) for rows that `weight` is multiplied with.
RowCode code_of_weight(const ProgramSpec& spec, int32_t weight, const std::string& name, const KernelTable& table) {
    if (weight < 0 || static_cast<size_t>(weight) >= spec.weights.size())
        throw std::invalid_argument("encoding for an unknown weight");
    if (!name.empty()) return parse_row_code(name);
    return default_row_code(spec.weights[static_cast<size_t>(weight)]->view().format, table.linear);
}

ProgramSpec read_spec(nb::handle program, const KernelTable& table) {
    ProgramSpec spec;
    spec.hidden = field<int32_t>(program, "hidden");
    spec.vocab = field<int32_t>(program, "vocab");
    spec.slots = field<std::vector<int32_t>>(program, "slots");
    for (auto& weight : field<std::vector<std::shared_ptr<PackedWeight>>>(program, "weights"))
        spec.weights.push_back(std::move(weight));
    spec.vectors = field<std::vector<std::vector<float>>>(program, "vectors");
    spec.ropes = field<std::vector<std::vector<float>>>(program, "ropes");
    for (const auto& [slot, weight, name] :
         field<std::vector<std::tuple<int32_t, int32_t, std::string>>>(program, "encodings"))
        spec.encodings.push_back({slot, code_of_weight(spec, weight, name, table), weight});
    for (nb::handle layer : program.attr("layers"))
        spec.layers.push_back({field<int32_t>(layer, "heads"), field<int32_t>(layer, "kv_heads"),
                               field<int32_t>(layer, "head_dim"), field<float>(layer, "scale"),
                               field<int32_t>(layer, "window"), field<int32_t>(layer, "rope")});
    spec.embed = field<std::vector<Operation>>(program, "embed");
    spec.units = field<std::vector<std::vector<Operation>>>(program, "units");
    spec.head = field<std::vector<Operation>>(program, "head");
    return spec;
}

void make_model(Program* self, std::shared_ptr<Pool> pool, nb::handle program, const std::string& kv_format,
                nb::handle limits) {
    ProgramLimits bounds;
    bounds.kv_format = parse_kv_format(kv_format);
    bounds.pages = field<int64_t>(limits, "pages");
    bounds.max_rows = field<int32_t>(limits, "max_rows");
    bounds.chunk_tokens = field<int32_t>(limits, "chunk_tokens");
    bounds.lanes = field<int32_t>(limits, "lanes");
    bounds.apart = field<bool>(limits, "apart");
    bounds.tail_slots = field<int64_t>(limits, "tail_slots");
    const KernelTable& table = kernels();
    new (self) Program(std::move(pool), table, read_spec(program, table), bounds);
}

template <class Values>
std::vector<int32_t> copied(const Values& values) {
    return {values.data(), values.data() + values.size()};
}

nb::object step(Program& model, nb::handle batch) {
    const auto tokens = array<const int32_t, 1>(batch, "tokens"),
               positions = array<const int32_t, 1>(batch, "positions");
    const auto row_begin = array<const int32_t, 1>(batch, "row_begin");
    const auto unit_begin = array<const int32_t, 1>(batch, "unit_begin");
    const auto unit_end = array<const int32_t, 1>(batch, "unit_end");
    const auto table = array<const int32_t, 2>(batch, "block_table");
    const auto hidden = array<float, 2>(batch, "hidden");
    const auto logit_rows = array<const int32_t, 1>(batch, "logit_rows");
    const auto greedy_rows = array<const int32_t, 1>(batch, "greedy_rows");
    const auto stop = array<const uint8_t, 1>(batch, "stop");
    const auto rows = static_cast<int64_t>(tokens.shape(0)), slices = static_cast<int64_t>(unit_begin.shape(0));
    expect_length("positions", positions.shape(0), rows);
    expect_length("row_begin", row_begin.shape(0), slices + 1);
    expect_length("unit_end", unit_end.shape(0), slices);
    expect_length("block_table", table.shape(0), slices);
    expect_length("hidden", hidden.shape(0), rows);
    expect_length("hidden rows", hidden.shape(1), model.spec().hidden);
    expect_length("stop", stop.shape(0), 1);
    const size_t wanted = logit_rows.shape(0), greedy_count = greedy_rows.shape(0);
    if (static_cast<int64_t>(wanted + greedy_count) > rows)
        throw std::invalid_argument("more logit_rows and greedy_rows than rows");
    auto logits = new_array<float, 2>({wanted, static_cast<size_t>(model.spec().vocab)});
    auto reached = new_array<int32_t, 1>({static_cast<size_t>(slices)});
    auto greedy = new_array<int32_t, 1>({greedy_count});
    std::fill(greedy.data(), greedy.data() + greedy_count, -1);
    // What is checked must be what is used: another Python thread may write to the batch once the GIL is released.
    const std::vector<int32_t> own[] = {copied(tokens),   copied(positions), copied(row_begin),  copied(unit_begin),
                                        copied(unit_end), copied(table),     copied(logit_rows), copied(greedy_rows)};
    // Of KV formats with a tail only: None says that there are no slots.
    const bool has_tails = !nb::getattr(batch, "tail_slot", nb::none()).is_none();
    std::vector<int32_t> tail_slots;
    if (has_tails) tail_slots = copied(array<const int32_t, 1>(batch, "tail_slot"));
    if (has_tails) expect_length("tail_slot", tail_slots.size(), slices);
    const auto share = field<std::pair<int32_t, int32_t>>(batch, "workers");
    StepView view{own[0].data(),
                  own[1].data(),
                  own[2].data(),
                  own[3].data(),
                  own[4].data(),
                  own[5].data(),
                  own[6].data(),
                  hidden.data(),
                  stop.data(),
                  rows,
                  slices,
                  static_cast<int64_t>(table.shape(1)),
                  static_cast<int64_t>(wanted),
                  logits.data(),
                  reached.data(),
                  share.first,
                  share.second,
                  own[7].data(),
                  static_cast<int64_t>(greedy_count),
                  greedy.data()};
    view.tail_slots = has_tails ? tail_slots.data() : nullptr;
    {
        nb::gil_scoped_release release;
        model.step(view);
    }
    return nb::make_tuple(logits, reached, greedy);
}

void check_page(Program& model, int64_t page) {
    if (page < 0 || page >= model.pages().pages()) throw std::invalid_argument("page is outside the pool");
}

nb::bytes read_page(Program& model, int64_t page) {
    check_page(model, page);
    return nb::bytes(reinterpret_cast<const char*>(model.pages().page(page)), model.pages().page_bytes());
}

void write_page(Program& model, int64_t page, nb::bytes data) {
    check_page(model, page);
    if (data.size() != model.pages().page_bytes()) throw std::invalid_argument("page data has the wrong length");
    std::memcpy(model.pages().page(page), data.c_str(), data.size());
}

// Byte offsets of one layer inside a page, for tools and tests that read pages.
nb::dict page_layout(Program& model, int layer) {
    if (layer < 0 || static_cast<size_t>(layer) >= model.spec().layers.size())
        throw std::invalid_argument("layer is outside the model");
    const KvLayout& layout = model.layout(layer);
    nb::dict result;
    result["offset"] = model.layer_offset(layer);
    result["block_bytes"] = layout.block_bytes;
    result["v_offset"] = layout.v_offset;
    result["k_scale_offset"] = layout.k_scale_offset;
    result["v_scale_offset"] = layout.v_scale_offset;
    result["padded_dim"] = layout.padded_dim;
    return result;
}

// Calls `change` while no step runs.
void between_steps(Program& model, nb::callable change) {
    const std::unique_lock<std::shared_mutex> lock = [&] {
        nb::gil_scoped_release release;  // the step that is waited for may need the GIL to end
        return model.between_steps();
    }();
    change();
}

}  // namespace

void register_sample(nb::module_& m);
void register_profile(nb::class_<Program>& model);

void register_model(nb::module_& m) {
    nb::class_<Operation>(m, "Operation")
        .def("__init__", &make_operation, nb::arg("code"), nb::arg("slots"), nb::arg("weight") = -1,
             nb::arg("vector") = -1, nb::arg("parts") = 0, nb::arg("value") = 0.0f);
    nb::class_<Program> model(m, "Model");
    model.def("__init__", &make_model, nb::arg("pool"), nb::arg("program"), nb::arg("kv_format"), nb::arg("limits"))
        .def("step", &step, nb::arg("batch"),
             "(logits [E, V], reached [S], greedy [G]) of a StepBatch; releases the GIL.")
        .def("copy_page", &Program::copy_page, nb::arg("source"), nb::arg("target"),
             nb::call_guard<nb::gil_scoped_release>())
        .def("between_steps", &between_steps, nb::arg("change"), "Calls `change` while no step runs.")
        .def("read_page", &read_page, nb::arg("page"))
        .def("write_page", &write_page, nb::arg("page"), nb::arg("data"))
        .def("page_layout", &page_layout, nb::arg("layer"))
        .def_prop_ro("page_bytes", [](Program& model) { return model.pages().page_bytes(); })
        .def_prop_ro("tail_bytes", [](Program& model) { return model.tails().bytes(); })
        .def_prop_ro("scratch_bytes", &Program::scratch_bytes);
    register_profile(model);
    register_sample(m);
}

}  // namespace kvern
