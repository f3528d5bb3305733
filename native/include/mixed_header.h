// Header of a w4a4_mixed matrix: for each position the input that stands there (int32 [K], a permutation), then for
// each group of 64 positions whether its activations keep 8 bits (uint8 [K / 64], 0 or 1).
#pragma once
#include <cstdint>
#include <cstring>

namespace kvern {

inline int32_t mixed_input(const uint8_t* header, int64_t position) {
    int32_t input;
    std::memcpy(&input, header + 4 * position, 4);
    return input;
}

inline bool mixed_is_wide(const uint8_t* header, int64_t k, int64_t group) { return header[4 * k + group] != 0; }

inline int64_t mixed_header_bytes(int64_t k) { return 4 * k + k / 64; }

}  // namespace kvern
