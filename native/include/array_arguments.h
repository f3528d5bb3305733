// NumPy arrays as attributes of Python objects, taken without copies and checked; and new ones to return.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <array>
#include <cstdlib>
#include <new>
#include <stdexcept>
#include <string>

namespace kvern {

template <class T, int N>
using Array = nanobind::ndarray<T, nanobind::ndim<N>, nanobind::c_contig, nanobind::device::cpu>;

// The attribute `name` of `object`; its dtype, dimensions and order must match exactly. Throws std::invalid_argument.
template <class T, int N>
Array<T, N> array(nanobind::handle object, const char* name) {
    Array<T, N> value;
    if (!nanobind::try_cast<Array<T, N>>(object.attr(name), value, false))
        throw std::invalid_argument(std::string("'") + name + "' is not a contiguous array of " + std::to_string(N) +
                                    " dimensions and the expected type");
    return value;
}

inline void expect_length(const char* what, size_t found, int64_t wanted) {
    if (static_cast<int64_t>(found) != wanted)
        throw std::invalid_argument(std::string(what) + " has length " + std::to_string(found) + ", not " +
                                    std::to_string(wanted));
}

// A zeroed NumPy array that owns its memory.
template <class T, size_t N>
nanobind::ndarray<nanobind::numpy, T, nanobind::ndim<N>> new_array(std::array<size_t, N> shape) {
    size_t count = 1;
    for (size_t extent : shape) count *= extent;
    void* memory = std::calloc(count > 0 ? count : 1, sizeof(T));
    if (memory == nullptr) throw std::bad_alloc();
    nanobind::capsule owner(memory, [](void* p) noexcept { std::free(p); });
    return nanobind::ndarray<nanobind::numpy, T, nanobind::ndim<N>>(memory, N, shape.data(), owner);
}

}  // namespace kvern
