// Dot products of signed bytes with 16-bit numbers, exact on every instruction set: a lane of 4 bytes is split into
// two pairs of 16-bit numbers, and pairs are multiplied and added to 32 bits.
#pragma once
#include "lanes.h"

namespace kvern::KVERN_ISA_NS {

constexpr float kPairTop = 32512.0f;  // of the 16-bit numbers: 127 * 256, so that two signed bytes hold them

#if defined(__AVX512F__)
inline I16 even_bytes(I16 w) { return {_mm512_srai_epi16(_mm512_slli_epi16(w.v, 8), 8)}; }
inline I16 odd_bytes(I16 w) { return {_mm512_srai_epi16(w.v, 8)}; }
inline I16 dot_pairs(I16 sum, I16 a, I16 b) { return {_mm512_dpwssd_epi32(sum.v, a.v, b.v)}; }
inline I16 pair_words(I16 c) {
    const __m512i low = _mm512_and_si512(c.v, _mm512_set1_epi32(0xffff));
    return {_mm512_or_si512(low, _mm512_slli_epi32(_mm512_shuffle_epi32(c.v, static_cast<_MM_PERM_ENUM>(0x4e)), 16))};
}
#elif defined(__AVX2__)
inline I16 even_bytes(I16 w) {
    return {_mm256_srai_epi16(_mm256_slli_epi16(w.lo, 8), 8), _mm256_srai_epi16(_mm256_slli_epi16(w.hi, 8), 8)};
}
inline I16 odd_bytes(I16 w) { return {_mm256_srai_epi16(w.lo, 8), _mm256_srai_epi16(w.hi, 8)}; }
inline I16 dot_pairs(I16 sum, I16 a, I16 b) {
    return {_mm256_add_epi32(sum.lo, _mm256_madd_epi16(a.lo, b.lo)),
            _mm256_add_epi32(sum.hi, _mm256_madd_epi16(a.hi, b.hi))};
}
inline I16 pair_words(I16 c) {
    const __m256i mask = _mm256_set1_epi32(0xffff);
    const __m256i lo = _mm256_slli_epi32(_mm256_shuffle_epi32(c.lo, 0x4e), 16);
    const __m256i hi = _mm256_slli_epi32(_mm256_shuffle_epi32(c.hi, 0x4e), 16);
    return {_mm256_or_si256(_mm256_and_si256(c.lo, mask), lo), _mm256_or_si256(_mm256_and_si256(c.hi, mask), hi)};
}
#else
inline int32_t pair_of(int32_t low, int32_t high) {
    return static_cast<int32_t>((static_cast<uint32_t>(low) & 0xffffu) | (static_cast<uint32_t>(high) << 16));
}
inline int32_t byte_of(int32_t w, int i) { return static_cast<int8_t>(static_cast<uint32_t>(w) >> (8 * i)); }
inline int32_t low_of(int32_t pair) { return static_cast<int16_t>(static_cast<uint32_t>(pair)); }
inline int32_t high_of(int32_t pair) { return static_cast<int16_t>(static_cast<uint32_t>(pair) >> 16); }
inline I16 even_bytes(I16 w) {
    I16 r;
    for (int i = 0; i < 16; ++i) r.v[i] = pair_of(byte_of(w.v[i], 0), byte_of(w.v[i], 2));
    return r;
}
inline I16 odd_bytes(I16 w) {
    I16 r;
    for (int i = 0; i < 16; ++i) r.v[i] = pair_of(byte_of(w.v[i], 1), byte_of(w.v[i], 3));
    return r;
}
inline I16 dot_pairs(I16 sum, I16 a, I16 b) {
    for (int i = 0; i < 16; ++i) sum.v[i] += low_of(a.v[i]) * low_of(b.v[i]) + high_of(a.v[i]) * high_of(b.v[i]);
    return sum;
}
inline I16 pair_words(I16 c) {
    I16 r;
    for (int i = 0; i < 16; ++i) r.v[i] = pair_of(c.v[i], c.v[(i & ~3) | ((i + 2) & 3)]);
    return r;
}
#endif
// even_bytes, odd_bytes: bytes (0, 2) and (1, 3) of each lane as two signed 16-bit numbers. dot_pairs: sum + a . b.
// pair_words: of lanes c0 c1 c2 c3, lane 0 becomes (c0, c2) and lane 1 (c1, c3), to match the bytes; lanes 2 and 3
// are of no use.

}  // namespace kvern::KVERN_ISA_NS
