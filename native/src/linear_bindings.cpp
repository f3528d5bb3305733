#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
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
                         Pool* pool) {
    if (rows && static_cast<int64_t>(rows->shape(0)) != n)
        throw std::invalid_argument("rows must name one row for each of the " + std::to_string(n) + " outputs");
    const int32_t* order = rows ? rows->data() : nullptr;
    const uint8_t* bytes = data.data();
    const size_t size = data.size();
    nb::gil_scoped_release release;
    return PackedWeight::from_blocks(parse_format(format), bytes, size, n, k, order, pool);
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

// One linear layer from plain rows: encode, multiply. Returns the name of the route the last block took.
const char* linear_into(const Matrix& x, const PackedWeight& weight, const float* bias, const std::string& isa,
                        Pool& pool, float* y) {
    const LinearTable& table = kernels_for(isa).linear;
    const WeightView& view = weight.view();
    const auto rows = static_cast<int64_t>(x.shape(0));
    const float* values = x.data();
    const char* route = "";
    nb::gil_scoped_release release;
    const RowCode code = row_code(view.format, table);
    Memory memory = aligned_memory(encoded_rows_bytes(code, rows, view.k));
    const EncodedRows encoded = code == RowCode::f32 ? plain_rows(values, view.k, rows, view.k)
                                                     : encoded_rows_view(code, rows, view.k, memory.get());
    encode_rows(pool, table, values, view.k, encoded);
    run_linear(pool, table, {view, &encoded, y, view.n, bias, &route});
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
                          std::optional<std::string> isa, int threads, Pool* pool) {
    check_linear(x, weight, bias);
    Call call(pool, threads);
    const auto rows = static_cast<int64_t>(x.shape(0));
    std::unique_ptr<float[]> y(new float[static_cast<size_t>(rows * weight.view().n)]);
    linear_into(x, weight, bias ? bias->data() : nullptr, isa.value_or(""), *call.pool, y.get());
    return own_matrix(y.release(), rows, weight.view().n);
}

std::string linear_route(Matrix x, const PackedWeight& weight, std::optional<std::string> isa) {
    check_linear(x, weight, std::nullopt);
    Pool pool(1);
    std::unique_ptr<float[]> y(new float[x.shape(0) * static_cast<size_t>(weight.view().n)]);
    return linear_into(x, weight, nullptr, isa.value_or(""), pool, y.get());
}

// Repeats a layer without Python in between, so that a benchmark times the kernels alone.
void repeat_linear(Matrix x, const PackedWeight& weight, int times, std::optional<std::string> isa, Pool& pool) {
    check_linear(x, weight, std::nullopt);
    const LinearTable& table = kernels_for(isa.value_or("")).linear;
    const WeightView& view = weight.view();
    const auto rows = static_cast<int64_t>(x.shape(0));
    const float* values = x.data();
    nb::gil_scoped_release release;
    const RowCode code = row_code(view.format, table);
    Memory memory = aligned_memory(encoded_rows_bytes(code, rows, view.k));
    Memory y = aligned_memory(static_cast<size_t>(rows * view.n) * sizeof(float));
    const EncodedRows encoded = code == RowCode::f32 ? plain_rows(values, view.k, rows, view.k)
                                                     : encoded_rows_view(code, rows, view.k, memory.get());
    for (int i = 0; i < times; ++i) {
        encode_rows(pool, table, values, view.k, encoded);
        run_linear(pool, table, {view, &encoded, static_cast<float*>(y.get()), view.n, nullptr, nullptr});
    }
}

nb::dict quantize_rows(Matrix x, const std::string& kind, std::optional<std::string> isa, int threads) {
    const LinearTable& table = kernels_for(isa.value_or("")).linear;
    const auto rows = static_cast<int64_t>(x.shape(0)), k = static_cast<int64_t>(x.shape(1));
    if (kind != "group" && kind != "row" && kind != "bf16")
        throw std::invalid_argument("kind must be group, row or bf16, not '" + kind + "'");
    const RowCode code = kind == "group" ? RowCode::q8_group : kind == "row" ? RowCode::q8_row : RowCode::bf16;
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
        .def(nb::init<int, bool>(), "threads"_a, "pin"_a = false)
        .def_prop_ro("threads", &Pool::workers);
    nb::class_<PackedWeight>(module, "PackedWeight", "A weight matrix [n, k] packed for the kernels.")
        .def_static("from_blocks", from_blocks, "format"_a, "data"_a, "n"_a, "k"_a, "rows"_a = nb::none(),
                    "pool"_a = nb::none())
        .def_static("from_float", from_float, "format"_a, "data"_a, "pool"_a = nb::none())
        .def_prop_ro("nbytes", &PackedWeight::bytes)
        .def_prop_ro("n", [](const PackedWeight& w) { return w.view().n; })
        .def_prop_ro("k", [](const PackedWeight& w) { return w.view().k; })
        .def_prop_ro("format", [](const PackedWeight& w) { return format_info(w.view().format).name; })
        .def("row", weight_row, "row"_a, "Output `row` as float32[k].")
        .def("rows", weight_rows, "ids"_a, "float32[len(ids), k].");
    module.def("linear", linear, "x"_a, "weight"_a, "bias"_a = nb::none(), "isa"_a = nb::none(), "threads"_a = 1,
               "pool"_a = nb::none(), "x @ weight.T (+ bias): float32[m, k] to float32[m, n].");
    module.def("linear_route", linear_route, "x"_a, "weight"_a, "isa"_a = nb::none(),
               "The code that served the rows.");
    module.def("repeat_linear", repeat_linear, "x"_a, "weight"_a, "times"_a, "isa"_a, "pool"_a, "For benchmarks.");
    module.def(
        "multiply_add_peak", [](int64_t loops) { return kernels().linear.multiply_add_peak(loops); }, "loops"_a,
        "For benchmarks: int8 operations done in registers; 0 where not measured.");
    module.def(
        "read_weight",
        [](const PackedWeight& w, int times) {
            int64_t bytes = 0;
            for (int i = 0; i < times; ++i)
                bytes += kernels().linear.read_memory(w.view().data, static_cast<int64_t>(w.bytes()));
            return bytes;
        },
        "weight"_a, "times"_a, "For benchmarks: reads the packed bytes `times` times, doing nothing with them.");
    module.def("quantize_rows", quantize_rows, "x"_a, "kind"_a = "group", "isa"_a = nb::none(), "threads"_a = 1,
               "Codes, scales and sums of rows as the linear kernels see them.");
}

}  // namespace kvern
