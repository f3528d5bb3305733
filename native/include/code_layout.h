// How codes of 1 to 8 bits lie in packed tiles: the C++ twin of src/kvern/formats/layout.py (Tilus' layout algebra).
//
// A layout maps an element (output, input) of a rectangle to a unit of memory and a slot in it. spatial(a, b) spreads
// a x b elements over units, local(a, b) puts them into the slots of one unit, and x * y nests: each element of x is
// a rectangle of y. A slot is as many bits wide as the codes are.
//
// Codes of BITS bits are cut into planes as wide as the binary digits of BITS (6 = 4 + 2), the widest with the lowest
// bits first. A plane of 16 outputs x 32 inputs is `width` vectors of 64 bytes; with steps of 4 inputs (0..7), step s
// lies in vector s % width at bit s / width * width of each byte [16 outputs][4 inputs]. Any plane so laid out splits
// into single bits whose bit s belongs to step s, whatever its width.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace kvern {

struct Place {
    int unit, slot;
};

struct Mode {
    bool spatial, input;
    int size;
};

template <size_t MODES>
struct Layout {
    std::array<Mode, MODES> modes;  // outermost first

    constexpr Place place(int output, int input) const {
        Place found{0, 0};
        int units = 1, slots = 1;
        for (size_t i = MODES; i-- > 0;) {
            const Mode& mode = modes[i];
            int& coordinate = mode.input ? input : output;
            (mode.spatial ? found.unit : found.slot) += coordinate % mode.size * (mode.spatial ? units : slots);
            (mode.spatial ? units : slots) *= mode.size;
            coordinate /= mode.size;
        }
        return found;
    }
};

constexpr Layout<2> spatial(int outputs, int inputs) { return {{{{true, false, outputs}, {true, true, inputs}}}}; }
constexpr Layout<2> local(int outputs, int inputs) { return {{{{false, false, outputs}, {false, true, inputs}}}}; }

template <size_t A, size_t B>
constexpr Layout<A + B> operator*(const Layout<A>& outer, const Layout<B>& inner) {
    Layout<A + B> both{};
    for (size_t i = 0; i < A; ++i) both.modes[i] = outer.modes[i];
    for (size_t i = 0; i < B; ++i) both.modes[A + i] = inner.modes[i];
    return both;
}

constexpr int kTileOutputs = 16, kStepInputs = 4, kBlockSteps = 8, kBlockInputs = 32;
constexpr int kVector = kTileOutputs * kStepInputs;  // bytes

// One plane of 16 outputs x 32 inputs; its units are bytes.
constexpr auto plane_layout(int width) {
    return local(1, 8 / width) * spatial(1, width) * spatial(kTileOutputs, 1) * spatial(1, kStepInputs);
}

// The plane that holds bit `low` and up of codes of `bits` bits: as wide as the highest binary digit left.
constexpr int plane_width(int bits, int low) {
    int width = 8;
    while (width > bits - low) width /= 2;
    return width;
}

// Bytes of 16 outputs x 32 inputs of codes; the plane of bit `low` begins at low * kVector.
constexpr int block_bytes(int bits) { return bits * kVector; }

// Where each code of a plane lies, by output and input.
struct PlaneTable {
    std::array<std::array<uint16_t, kBlockInputs>, kTileOutputs> byte;
    std::array<uint8_t, kBlockInputs> shift;  // the same for all outputs
};

constexpr PlaneTable plane_table(int width) {
    PlaneTable table{};
    const auto layout = plane_layout(width);
    for (int output = 0; output < kTileOutputs; ++output)
        for (int input = 0; input < kBlockInputs; ++input) {
            const Place place = layout.place(output, input);
            table.byte[output][input] = static_cast<uint16_t>(place.unit);
            table.shift[input] = static_cast<uint8_t>(place.slot * width);
        }
    return table;
}

template <int WIDTH>
inline constexpr PlaneTable kPlaneTable = plane_table(WIDTH);

// Calls f(integral constant width, integral constant low) for every plane of codes of BITS bits.
template <int BITS, int LOW = 0, class F>
constexpr void each_plane(F&& f) {
    if constexpr (LOW < BITS) {
        constexpr int width = plane_width(BITS, LOW);
        f(std::integral_constant<int, width>{}, std::integral_constant<int, LOW>{});
        each_plane<BITS, LOW + width>(f);
    }
}

// Puts one code into a zeroed block of 16 outputs x 32 inputs.
template <int BITS>
inline void put_code(uint8_t* block, int output, int input, unsigned code) {
    each_plane<BITS>([&](auto width, auto low) {
        const PlaneTable& table = kPlaneTable<width()>;
        const unsigned part = code >> low() & ((1u << width()) - 1);
        block[low() * kVector + table.byte[output][input]] |= static_cast<uint8_t>(part << table.shift[input]);
    });
}

template <int BITS>
inline unsigned code_in(const uint8_t* block, int output, int input) {
    unsigned code = 0;
    each_plane<BITS>([&](auto width, auto low) {
        const PlaneTable& table = kPlaneTable<width()>;
        const unsigned byte = block[low() * kVector + table.byte[output][input]];
        code |= (byte >> table.shift[input] & ((1u << width()) - 1)) << low();
    });
    return code;
}

}  // namespace kvern
