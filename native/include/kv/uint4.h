// Asymmetric 4-bit codes: x ~ low + step * code, step and low in float16 (src/kvern/formats/uint4.py).
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "../lanes.h"
#include "half.h"

namespace kvern::KVERN_ISA_NS {

struct Line {
    uint16_t step, low;  // float16
};

constexpr uint16_t kHalfNan = 0x7e00u;

// What is not finite, or too large for float16, gets a NaN step: whatever reads it becomes NaN and is reported.
inline Line line_between(float least, float most) {
    Line line{to_half((most - least) * (1.0f / 15.0f)), to_half(least)};
    const bool finite = (line.step & 0x7c00u) != 0x7c00u && (line.low & 0x7c00u) != 0x7c00u;
    return finite ? line : Line{kHalfNan, 0};
}

// Codes of 16 lanes on one line; zeros where the line is flat or NaN.
inline I16 codes_on(F16 x, float step, float low) {
    if (!(step > 0.0f)) return splat(int32_t{0});
    return to_int_nearest(max(min((x - splat(low)) / splat(step), splat(15.0f)), splat(0.0f)));
}

// The line through x[0, n) and its codes, one a byte. `codes` has room for n rounded up to 16.
inline Line encode_uint4(const float* x, int n, uint8_t* codes) {
    const float infinity = std::numeric_limits<float>::infinity();
    F16 least = splat(infinity), most = splat(-infinity), check = splat(0.0f);
    for (int i = 0; i < n; i += 16) {
        least = min(least, load_first(x + i, n - i, infinity));
        most = max(most, load_first(x + i, n - i, -infinity));
        check = fma(load_first(x + i, n - i), splat(0.0f), check);  // a vector min or max may drop a NaN
    }
    const float spoiled = quick_sum(check);
    const Line line = line_between(-quick_max(splat(0.0f) - least) + spoiled, quick_max(most) + spoiled);
    const float step = from_half(line.step), low = from_half(line.low);
    for (int i = 0; i < n; i += 16) {
        alignas(64) int32_t code[16];
        store(code, codes_on(load_first(x + i, n - i), step, low));
        for (int j = 0; j < 16; ++j) codes[i + j] = static_cast<uint8_t>(code[j]);
    }
    return line;
}

}  // namespace kvern::KVERN_ISA_NS
