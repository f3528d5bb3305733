#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>

#include "bindings.h"
#include "dispatch.h"
#include "packing.h"
#include "threads.h"
#include "weight_codec.h"

namespace nb = nanobind;

namespace kvern {
namespace {

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::c_contig, nb::device::cpu>;
using Indices = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using NumpyMatrix = nb::ndarray<nb::numpy, T, nb::ndim<2>>;

struct AlignedFree {
    void operator()(void* p) const { std::free(p); }
};
using Memory = std::unique_ptr<void, AlignedFree>;

Memory aligned_memory(size_t bytes) {
    void* p = std::aligned_alloc(64, (bytes + 127) / 64 * 64);
    if (!p) throw std::bad_alloc();
    return Memory(p);
}

template <class T>
NumpyMatrix<T> own_matrix(T* data, int64_t rows, int64_t columns) {
    nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return NumpyMatrix<T>(data, {static_cast<size_t>(rows), static_cast<size_t>(columns)}, owner);
}

template <class T>
NumpyMatrix<T> copied_matrix(const T* from, int64_t rows, int64_t columns, int64_t stride) {
    T* data = new T[static_cast<size_t>(rows * columns)];
    for (int64_t r = 0; r < rows; ++r) std::copy(from + r * stride, from + r * stride + columns, data + r * columns);
    return own_matrix(data, rows, columns);
}

PackedWeight from_blocks(const std::string& format, Bytes data, int64_t n, int64_t k, std::optional<Indices> rows,
                         Pool* pool, std::optional<Bytes> header, int blocks) {
    if (rows && static_cast<int64_t>(rows->shape(0)) != n)
        throw std::invalid_argument("rows must name one row for each of the " + std::to_string(n) + " outputs");
    const FileRows file_rows{data.data(), data.size(), rows ? rows->data() : nullptr, blocks};
    WeightShape shape{n, k};
    if (header) shape.header = header->data(), shape.header_bytes = static_cast<int64_t>(header->size());
    nb::gil_scoped_release release;
    return PackedWeight::from_blocks(parse_format(format), shape, file_rows, pool);
}

// Shrinks or grows to `count` blocks; without the GIL, as packing takes its time.
void set_blocks(PackedWeight& weight, int count, Bytes data, Bytes header, std::optional<Indices> rows, Pool* pool) {
    if (rows && static_cast<int64_t>(rows->shape(0)) != weight.view().n)
        throw std::invalid_argument("rows must name one row for each output");
    const FileRows file_rows{data.data(), data.size(), rows ? rows->data() : nullptr};
    const WeightShape shape{weight.view().n, weight.view().k, header.data(), static_cast<int64_t>(header.size())};
    nb::gil_scoped_release release;
    if (count < weight.resident_parts())
        weight.keep_parts(count);
    else
        weight.add_parts(count, shape, file_rows, pool);
}

PackedWeight from_float(const std::string& format, Matrix data, Pool* pool) {
    const float* values = data.data();
    const auto n = static_cast<int64_t>(data.shape(0)), k = static_cast<int64_t>(data.shape(1));
    nb::gil_scoped_release release;
    return PackedWeight::from_float(parse_format(format), values, n, k, pool);
}

NumpyMatrix<float> weight_rows(const PackedWeight& weight, Indices ids) {
    const auto count = static_cast<int64_t>(ids.shape(0));
    const int64_t k = weight.view().k;
    for (int64_t i = 0; i < count; ++i)
        if (ids.data()[i] < 0 || ids.data()[i] >= weight.view().n)
            throw nb::index_error(("row " + std::to_string(ids.data()[i]) + " is not in the weight").c_str());
    auto* out = new float[static_cast<size_t>(count * k)];
    for (int64_t i = 0; i < count; ++i) weight.row(ids.data()[i], out + i * k);
    return own_matrix(out, count, k);
}

nb::ndarray<nb::numpy, float, nb::ndim<1>> weight_row(const PackedWeight& weight, int64_t row) {
    if (row < 0 || row >= weight.view().n)
        throw nb::index_error(("row " + std::to_string(row) + " is not in the weight").c_str());
    auto* out = new float[static_cast<size_t>(weight.view().k)];
    weight.row(row, out);
    nb::capsule owner(out, [](void* p) noexcept { delete[] static_cast<float*>(p); });
    return nb::ndarray<nb::numpy, float, nb::ndim<1>>(out, {static_cast<size_t>(weight.view().k)}, owner);
}

NumpyMatrix<uint8_t> packed_tiles(const PackedWeight& weight) {
    const WeightView& view = weight.view();
    return copied_matrix(view.data, (view.n + 15) / 16, view.tile_bytes, view.tile_bytes);
}

// Rows of x encoded for a weight, in memory of their own.
struct Encoder {
    Encoder(const Matrix& x, const PackedWeight& weight, const LinearTable& table, const std::string& activation)
        : table_(table), x_(x.data()), k_(weight.view().k) {
        const WeightView& view = weight.view();
        const auto rows = static_cast<int64_t>(x.shape(0));
        const RowCode code = activation.empty() ? default_row_code(view.format, table) : parse_row_code(activation);
        if (table.at(view.format, code) == nullptr)
            throw std::invalid_argument(std::string(codec_of(view.format).name) + " weights are not served with " +
                                        row_code_name(code) + " activations here");
        memory_ = aligned_memory(encoded_rows_bytes(code, rows, view.k));
        encoded = code == RowCode::f32 ? plain_rows(x_, view.k, rows, view.k)
                                       : encoded_rows_view(code, rows, view.k, memory_.get());
        encoded.header = view.header;
    }
    void encode(Pool& pool) { encode_rows(pool, table_, x_, k_, encoded); }
    EncodedRows encoded;

  private:
    const LinearTable& table_;
    const float* x_;
    int64_t k_;
    Memory memory_;
};

// What a call of `linear` may choose.
struct Choice {
    std::string isa, activation;
    Choice(std::optional<std::string> isa_name, std::optional<std::string> activation_name)
        : isa(isa_name.value_or("")), activation(activation_name.value_or("")) {}
};

// One linear layer from plain rows: encode, multiply. Returns the name of the route the last block took.
const char* linear_into(const Matrix& x, const PackedWeight& weight, const float* bias, const Choice& choice,
                        Pool& pool, float* y) {
    const LinearTable& table = kernels_for(choice.isa).linear;
    Encoder rows(x, weight, table, choice.activation);
    const char* route = "";
    nb::gil_scoped_release release;
    rows.encode(pool);
    run_linear(pool, table, {weight.view(), &rows.encoded, y, weight.view().n, bias, &route});
    return route;
}

struct Call {
    std::optional<Pool> own;
    Pool* pool;
    Call(Pool* given, int threads) : pool(given) {
        if (!given) pool = &own.emplace(threads);
    }
};

void check_linear(const Matrix& x, const PackedWeight& weight, const std::optional<Vector>& bias) {
    const WeightView& view = weight.view();
    if (static_cast<int64_t>(x.shape(1)) != view.k)
        throw std::invalid_argument("x has " + std::to_string(x.shape(1)) + " columns, the weight " +
                                    std::to_string(view.k) + " inputs");
    if (bias && static_cast<int64_t>(bias->shape(0)) != view.n)
        throw std::invalid_argument("bias must hold " + std::to_string(view.n) + " numbers");
}

NumpyMatrix<float> linear(Matrix x, const PackedWeight& weight, std::optional<Vector> bias,
                          std::optional<std::string> isa, int threads, Pool* pool,
                          std::optional<std::string> activation) {
    check_linear(x, weight, bias);
    Call call(pool, threads);
    const auto rows = static_cast<int64_t>(x.shape(0));
    std::unique_ptr<float[]> y(new float[static_cast<size_t>(rows * weight.view().n)]);
    linear_into(x, weight, bias ? bias->data() : nullptr, Choice(isa, activation), *call.pool, y.get());
    return own_matrix(y.release(), rows, weight.view().n);
}

std::string linear_route(Matrix x, const PackedWeight& weight, std::optional<std::string> isa,
                         std::optional<std::string> activation) {
    check_linear(x, weight, std::nullopt);
    Pool pool(1);
    std::unique_ptr<float[]> y(new float[x.shape(0) * static_cast<size_t>(weight.view().n)]);
    return linear_into(x, weight, nullptr, Choice(isa, activation), pool, y.get());
}

// Repeats a layer without Python in between, so that a benchmark times the kernels alone.
void repeat_linear(Matrix x, const PackedWeight& weight, int times, std::optional<std::string> isa, Pool& pool,
                   std::optional<std::string> activation) {
    check_linear(x, weight, std::nullopt);
    const Choice choice(isa, activation);
    const LinearTable& table = kernels_for(choice.isa).linear;
    Encoder rows(x, weight, table, choice.activation);
    const WeightView& view = weight.view();
    Memory y = aligned_memory(x.shape(0) * static_cast<size_t>(view.n) * sizeof(float));
    nb::gil_scoped_release release;
    for (int i = 0; i < times; ++i) {
        rows.encode(pool);
        run_linear(pool, table, {view, &rows.encoded, static_cast<float*>(y.get()), view.n, nullptr, nullptr});
    }
}

bool served(const std::string& format, const std::string& activation, std::optional<std::string> isa) {
    return kernels_for(isa.value_or("")).linear.at(parse_format(format), parse_row_code(activation)) != nullptr;
}

nb::dict quantize_rows(Matrix x, const std::string& kind, std::optional<std::string> isa, int threads) {
    const LinearTable& table = kernels_for(isa.value_or("")).linear;
    const auto rows = static_cast<int64_t>(x.shape(0)), k = static_cast<int64_t>(x.shape(1));
    const RowCode code = kind == "group" ? RowCode::q8_group : kind == "row" ? RowCode::q8_row : parse_row_code(kind);
    if (code == RowCode::f32 || code == RowCode::mixed_4_8)
        throw std::invalid_argument("rows of '" + kind + "' are not made without a weight");
    if (k < 1 || (code == RowCode::q8_group && k % 32 != 0))
        throw std::invalid_argument("groups of 32 do not divide " + std::to_string(k) + " columns");
    Memory memory = aligned_memory(encoded_rows_bytes(code, rows, k));
    const EncodedRows out = encoded_rows_view(code, rows, k, memory.get());
    Pool pool(threads);
    encode_rows(pool, table, x.data(), k, out);
    nb::dict result;
    if (code == RowCode::bf16) {
        result["bf16"] = copied_matrix(out.bf16, rows, k, out.stride);
        return result;
    }
    result["codes"] = copied_matrix(out.codes, rows, k, out.stride);
    result["scales"] = copied_matrix(out.scales, rows, out.groups, out.groups);
    result["scaled_sums"] = copied_matrix(out.scaled_sums, rows, out.groups, out.groups);
    result["sums"] = copied_matrix(out.sums, rows, out.groups, out.groups);
    result["half_sums"] = copied_matrix(out.half_sums, rows, 2 * out.groups, 2 * out.groups);
    return result;
}

}  // namespace

void register_linear(nb::module_& module) {
    using namespace nb::literals;
    module.def(
        "isa", [] { return kernels().isa; }, "The instruction set in use (KVERN_ISA may choose a lesser one).");
    module.def("available_isas", [] { return available_isas(); }, "Best first.");
    nb::class_<Pool>(module, "Pool", "Worker threads; the calling thread is one of them.")
        .def(nb::init<int, std::vector<int>>(), "threads"_a, "cpus"_a = std::vector<int>(),
             "`cpus`: none, or one for each thread, the first being the caller's (see pin_caller).")
        .def_prop_ro("threads", &Pool::workers)
        .def_prop_ro("cpus", &Pool::cpus)
        .def("pin_caller", &Pool::pin_caller,
             "Tie the calling thread to the first of the pool's CPUs, if it has any.")
        .def(
            "share", [](const Pool& pool, int first, int count) { return pool.share(first, count); }, "first"_a,
            "count"_a, "A pool of its own on the CPUs of some of this pool's threads, for a lane beside others.");
    nb::class_<PackedWeight>(module, "PackedWeight", "A weight matrix [n, k] packed for the kernels.")
        .def_static("from_blocks", from_blocks, "format"_a, "data"_a, "n"_a, "k"_a, "rows"_a = nb::none(),
                    "pool"_a = nb::none(), "header"_a = nb::none(), "blocks"_a = 0)
        .def_static("from_float", from_float, "format"_a, "data"_a, "pool"_a = nb::none())
        .def_prop_ro("nbytes", &PackedWeight::bytes)
        .def_prop_ro("blocks", &PackedWeight::parts, "Residual blocks of a bitstack matrix; 1 for other formats.")
        .def_prop_ro("resident_blocks", &PackedWeight::resident_parts)
        .def_prop_ro("block_bytes", &PackedWeight::part_bytes, "Memory of one block.")
        .def("set_blocks", set_blocks, "count"_a, "data"_a, "header"_a, "rows"_a = nb::none(), "pool"_a = nb::none(),
             "Keep or bring in the first `count` blocks, from what from_blocks was given. No step may be under way.")
        .def_prop_ro("n", [](const PackedWeight& w) { return w.view().n; })
        .def_prop_ro("k", [](const PackedWeight& w) { return w.view().k; })
        .def_prop_ro("format", [](const PackedWeight& w) { return codec_of(w.view().format).name; })
        .def("row", weight_row, "row"_a, "Output `row` as float32[k].")
        .def("rows", weight_rows, "ids"_a, "float32[len(ids), k].")
        .def("tiles", packed_tiles, "A copy of the packed bytes: uint8[tiles of 16 outputs, bytes].");
    module.def("linear", linear, "x"_a, "weight"_a, "bias"_a = nb::none(), "isa"_a = nb::none(), "threads"_a = 1,
               "pool"_a = nb::none(), "activation"_a = nb::none(),
               "x @ weight.T (+ bias): float32[m, k] to float32[m, n].");
    module.def("linear_route", linear_route, "x"_a, "weight"_a, "isa"_a = nb::none(), "activation"_a = nb::none(),
               "The code that served the rows.");
    module.def("repeat_linear", repeat_linear, "x"_a, "weight"_a, "times"_a, "isa"_a, "pool"_a,
               "activation"_a = nb::none(), "For benchmarks.");
    module.def("linear_served", served, "format"_a, "activation"_a, "isa"_a = nb::none(),
               "Whether weights of a format are multiplied with activations of a format.");
    module.def(
        "multiply_add_peak", [](int64_t loops) { return kernels().linear.multiply_add_peak(loops); }, "loops"_a,
        "For benchmarks: int8 operations done in registers; 0 where not measured.");
    module.def(
        "read_weight",
        [](const PackedWeight& w, int times) {
            int64_t bytes = 0;
            for (int i = 0; i < times; ++i)
                bytes += kernels().linear.read_memory(w.view().data, (w.view().n + 15) / 16 * w.view().tile_bytes);
            return bytes;
        },
        "weight"_a, "times"_a, "For benchmarks: reads the packed bytes `times` times, doing nothing with them.");
    module.def("quantize_rows", quantize_rows, "x"_a, "kind"_a = "group", "isa"_a = nb::none(), "threads"_a = 1,
               "Codes, scales and sums of rows as the linear kernels see them.");
}

}  // namespace kvern
