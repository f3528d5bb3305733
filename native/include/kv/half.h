// float32 to float16 bits in plain integer arithmetic, so that all instruction sets agree: nearest, ties to even.
#pragma once
#include <cstdint>
#include <cstring>

namespace kvern {

inline uint16_t to_half(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);   // NaN
    if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 65536 or more
    if (magnitude < 0x38800000u) {                                               // subnormal: units of 2^-24
        if (magnitude < 0x33000000u) return static_cast<uint16_t>(sign);
        const uint32_t shift = 126u - (magnitude >> 23), fraction = (magnitude & 0x7fffffu) | 0x800000u;
        const uint32_t kept = fraction >> shift, rest = fraction & ((1u << shift) - 1u), middle = 1u << (shift - 1u);
        return static_cast<uint16_t>(sign | (kept + (rest > middle || (rest == middle && (kept & 1u)) ? 1u : 0u)));
    }
    const uint32_t kept = (magnitude - 0x38000000u) >> 13, rest = magnitude & 0x1fffu;
    return static_cast<uint16_t>(sign | (kept + (rest > 0x1000u || (rest == 0x1000u && (kept & 1u)) ? 1u : 0u)));
}

inline float from_half(uint16_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, exponent = (half >> 10) & 31u, fraction = half & 1023u;
    float value = static_cast<float>(fraction) * 0x1p-24f;
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (exponent != 0) bits = (exponent == 31 ? 0x7f800000u : (exponent + 112u) << 23) | (fraction << 13);
    bits |= sign;
    std::memcpy(&value, &bits, 4);
    return value;
}

}  // namespace kvern
