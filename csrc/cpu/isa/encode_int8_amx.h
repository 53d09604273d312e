// The int8 encoder with AMX. A tile product adds 64 products to each of 16 x 16 sums, i.e. 16 pixels times 16 output
// channels.
//
// A tile load reads 16 pieces of 64 bytes, and is fast only if no piece crosses a cache line. A piece is 4 pixels of 16
// channels. To keep all pieces aligned, a row contains each pixel twice:
//
//      piece 0    -1  0  1  2           output column 0 reads the first three pixels of piece 0, column 1 the last
//      piece 1     1  2  3  4           three; an output with stride 2 reads the first three
//      piece 2     3  4  5  6
//
// Each tile of weights has zeros for the pixel that it does not read. conv1 reads 3 rows of the image as one: a pixel's
// 16 bytes are its 4 bytes in the row above, in its own row and in the row below, and 4 zeros.
//
// Per 64 pixels:
//
//                     tile products   tiles read and written   instructions from sums to pieces or floats
//      conv1                4                8 + 4                 224, and 112 to put rows together
//      conv2, conv3     2 * 12            2 * (16 + 4)             2 * 224
//      low, high            3              5.5 + 1                  86
//      sum                 31               45.5 + 13              870
//
// A product takes 16 cycles, a tile load 8 and a tile store 16; two of the other instructions start in one cycle.

#pragma once

#include "cpu/isa/encode_int8_pass.h"

namespace wae::WAE_ISA {

// ------------------------------------------------------------------------------------------------- tiles

inline constexpr int64_t kPixel = 16, kPiece = 64, kTileBytes = 16 * kPiece;
inline constexpr int kSums = 0, kInput = 4, kWeights = 5;  // the first of 4, of 1 and of 2 tile registers

// In inline assembly, because the intrinsics of GCC 12 do not tell the compiler that a tile load reads memory.
template <int kTo>
WAE_INLINE void load_tile(const void* pieces, int64_t step = kPiece) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(pieces), "r"(step), "i"(kTo) : "memory");
}
template <int kFrom>
WAE_INLINE void store_tile(void* pieces, int64_t step) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(pieces), "r"(step), "i"(kFrom) : "memory");
}
// kTo += the unsigned bytes of kInput times the signed bytes of kFilters
template <int kTo, int kFilters>
WAE_INLINE void add_products() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kTo), "i"(kInput), "i"(kFilters));
}

// Configures all tile registers of the thread at full size. The destructor restores the former configuration, on which
// a caller may rely.
class Tiles {
 public:
  Tiles() {
    alignas(64) static constexpr Configuration whole{
        1,
        {},
        {kPiece, kPiece, kPiece, kPiece, kPiece, kPiece, kPiece, kPiece},
        {16, 16, 16, 16, 16, 16, 16, 16}};
    asm volatile("sttilecfg %0" : "=m"(before_));
    asm volatile("ldtilecfg %0" : : "m"(whole));
  }
  ~Tiles() { asm volatile("ldtilecfg %0" : : "m"(before_)); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  struct Configuration {
    uint8_t palette, rest[15];
    uint16_t bytes[16];
    uint8_t rows[16];
  };
  Configuration before_;
};

// Adds the products of one row of weights, for kOutputs outputs of each piece, in kCount tiles of pieces.
template <int kOutputs, int kCount>
WAE_INLINE void add_row(const uint8_t* pieces, const Int8TileRow& weights) {
  load_tile<kWeights>(weights.taps[1]);
  if constexpr (kOutputs == 2) load_tile<kWeights + 1>(weights.taps[0]);
  const auto add = [&]<int kBlock>() {
    load_tile<kInput>(pieces + kBlock * kTileBytes);
    add_products<kSums + kOutputs * kBlock, kWeights>();
    if constexpr (kOutputs == 2) add_products<kSums + 2 * kBlock + 1, kWeights + 1>();
  };
  add.template operator()<0>();
  if constexpr (kCount == 2) add.template operator()<1>();
}

template <int kTiles>
WAE_INLINE void start_sums(const int32_t start[16]) {
  load_tile<kSums + kTiles - 1>(start, 0);
  if constexpr (kTiles > 1) start_sums<kTiles - 1>(start);
}

template <int kOutputs, int kTiles>
WAE_INLINE void store_sums(int32_t* sums) {
  constexpr int kLast = kTiles - 1;
  int32_t* const to = sums + (kLast / kOutputs * 16 * kOutputs + kLast % kOutputs) * kChannels;
  store_tile<kSums + kLast>(to, kOutputs * kPiece);
  if constexpr (kTiles > 1) store_sums<kOutputs, kTiles - 1>(sums);
}

// Computes a row of `tiles` tiles of pieces, two at a time, and calls use(first, count) for those whose sums are in
// sums[output][16]. It calls it after issuing the products of the next tiles and before storing their sums, so that the
// CPU can multiply meanwhile.
template <int kRows, int kOutputs, class Use>
WAE_INLINE void sum_row(const uint8_t* const in[kRows], const Int8Tiles<kRows>& layer, int64_t tiles,
                        int32_t* sums, const Use& use) {
  const auto step = [&]<int kCount>(int64_t first) {
    start_sums<kOutputs * kCount>(layer.start);
    for (int ky = 0; ky < kRows; ++ky) add_row<kOutputs, kCount>(in[ky] + first * kTileBytes, layer.rows[ky]);
    if (first > 0) use(first - 2, 2);
    store_sums<kOutputs, kOutputs * kCount>(sums);
  };
  int64_t first = 0;
  for (; first + 1 < tiles; first += 2) step.template operator()<2>(first);
  if (first < tiles) step.template operator()<1>(first);
  const int64_t last = (tiles - 1) / 2 * 2;
  use(last, tiles - last);
}

// ------------------------------------------------------------------------------------------------ layers

// Writes the pieces of a row, from 4 pixels at a time. The first and the last piece lie in the margins of the row.
class Pieces {
 public:
  Pieces(uint8_t* row, Bytes before) : next_(row), last_(before) {}

  void put(Bytes four) {
    store_bytes(next_ - kPiece, _mm512_alignr_epi64(four, last_, 2));
    store_bytes(next_, _mm512_alignr_epi64(four, last_, 6));
    next_ += 2 * kPiece;
    last_ = four;
  }

 private:
  uint8_t* next_;
  Bytes last_;
};

// A row of a layer of the trunk. Pixels right of the image are written as zeros, the padding.
template <int kRows>
inline void conv_row(const uint8_t* const in[kRows], uint8_t* out, const Int8Tiles<kRows>& layer,
                     const HalfSpan& span, int64_t width, int32_t* sums) {
  const Bytes shift = load_bytes(layer.shift), multiplier = load_bytes(layer.multiplier);
  // each 128 bits hold 4 channels of 4 pixels, and are to hold the 16 channels of one pixel
  const Bytes by_pixel = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  int64_t inside = width - 2 * span.begin;
  Pieces pieces(out, broadcast_lane(0));
  sum_row<kRows, 2>(in, layer, span.blocks, sums, [&](int64_t, int64_t count) {
    for (int64_t pixel = 0; pixel < count * 32; pixel += 4, inside -= 4) {
      const auto shifted = [&](int i) {
        return _mm512_srav_epi32(load_bytes(sums + (pixel + i) * kChannels), shift);
      };
      const auto words = [&](int i) {
        return _mm512_mulhrs_epi16(_mm512_packs_epi32(shifted(i), shifted(i + 1)), multiplier);
      };
      const Bytes bytes = _mm512_packus_epi16(words(0), words(2));
      pieces.put(_mm512_maskz_permutexvar_epi32(first_lanes(4 * inside), by_pixel, bytes));
    }
  });
  pieces.put(broadcast_lane(0));
}

// Transposes 4 sums (output channels) of each of 16 outputs, from `first` on, to 4 vectors with a sum of all 16
// outputs.
WAE_INLINE void transpose_sums(const int32_t* first, Bytes by_sum[4]) {
  Bytes by_output[4];  // by_output[j] has outputs j, 4 + j, 8 + j and 12 + j
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const auto sums = [&](int i) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(first + (4 * i + j) * kChannels));
    };
    Bytes v = _mm512_castsi128_si512(sums(0));
    v = _mm512_mask_broadcast_i32x4(v, 0x00F0, sums(1));
    v = _mm512_mask_broadcast_i32x4(v, 0x0F00, sums(2));
    by_output[j] = _mm512_mask_broadcast_i32x4(v, 0xF000, sums(3));
  }
  const Bytes lo01 = _mm512_unpacklo_epi32(by_output[0], by_output[1]),
              lo23 = _mm512_unpacklo_epi32(by_output[2], by_output[3]),
              hi01 = _mm512_unpackhi_epi32(by_output[0], by_output[1]),
              hi23 = _mm512_unpackhi_epi32(by_output[2], by_output[3]);
  by_sum[0] = _mm512_unpacklo_epi64(lo01, lo23), by_sum[1] = _mm512_unpackhi_epi64(lo01, lo23);
  by_sum[2] = _mm512_unpacklo_epi64(hi01, hi23), by_sum[3] = _mm512_unpackhi_epi64(hi01, hi23);
}

// A half-resolution row of the 6 branch planes.
inline void branches_row(const uint8_t* const in[3], float* const outputs[6], const EncoderInt8Pack& pack,
                         const HalfSpan& span, int32_t* sums) {
  sum_row<3, 1>(in, pack.branch_tiles, span.blocks, sums, [&](int64_t first, int64_t count) {
    for (int64_t tile = 0; tile < count; ++tile) {
      Bytes by_branch[8];
      for (int o = 0; o < 8; o += 4) transpose_sums(sums + tile * 16 * kChannels + o, by_branch + o);
#pragma GCC unroll 6
      for (int o = 0; o < 6; ++o) {
        store(outputs[o] + (first + tile) * kLanes, branch_value(by_branch[o], pack, o));
      }
    }
  });
}

// -------------------------------------------------------------------------------------------------- pass

// The windows of a task, and the layers that encode_rows calls.
class AmxLayers {
 public:
  AmxLayers(const EncodeInt8Args& args, const Task& task)
      : args_(args),
        pack_(*args.weights),
        task_(task),
        span_(task, half_size(args.image.width)),
        pixels_(scratch_, row_size(kLane), args.image.height, pack_.padding),
        rows1_(scratch_, row_size(2 * kPixel), args.image.height, 0),
        rows2_(scratch_, row_size(2 * kPixel), args.image.height, 0),
        rows3_(scratch_, row_size(2 * kPixel), args.image.height, 0),
        stacked_(reinterpret_cast<uint8_t*>(scratch_.take(row_size(2 * kPixel) / sizeof(float))) + kMargin),
        sums_(reinterpret_cast<int32_t*>(scratch_.take(4 * 16 * kChannels))),
        branches_{scratch_.take(6 * span_.blocks * kLanes), 1, 6, span_.blocks * kLanes, span_.begin} {}

  void image(int64_t y) const {
    const ByteColumns columns(args_.image, task_.n, y, span_);
    const int64_t stride_c = args_.image.stride_c, stride_w = args_.image.stride_w;
    uint8_t* const out = pixels_.at(y);
    const auto load = [&](int64_t stride) {
      for (int64_t x = 0; x < columns.count; ++x) {
        const uint32_t pixel = pixel_at(columns.row + x * stride, stride_c);
        std::memcpy(out + x * kLane, &pixel, sizeof pixel);
      }
    };
    stride_w == 1 ? load(1) : load(stride_w);  // with a constant stride the compiler vectorizes the loop
  }
  void conv1(int64_t y) const {
    stack(y);
    const uint8_t* const in[1] = {stacked_};
    conv_row(in, rows1_.at(y), pack_.conv1_tiles, span_, args_.image.width, sums_);
  }
  void conv2(int64_t y) const { conv(rows1_, rows2_, y, pack_.conv2_tiles); }
  void conv3(int64_t y) const { conv(rows2_, rows3_, y, pack_.conv3_tiles); }
  void branches(int64_t y) const {
    const uint8_t* const in[3] = {rows3_.at(2 * y - 1), rows3_.at(2 * y), rows3_.at(2 * y + 1)};
    float* outputs[6];
    for (int o = 0; o < 6; ++o) outputs[o] = branches_.at(0, o, span_.begin);
    branches_row(in, outputs, pack_, span_, sums_);
    store_branches(branches_, args_.low, args_.high, task_, y);
  }

 private:
  static constexpr int64_t kLane = sizeof(uint32_t);

  int64_t columns() const { return 2 * (span_.end() - span_.begin); }

  // The bytes of a row, including its margins: an odd number of cache lines.
  int64_t row_size(int64_t bytes) const { return ((columns() * bytes + 2 * kMargin) / 64 | 1) * 64; }

  void conv(const ByteRows& in, const ByteRows& out, int64_t y, const Int8Tiles<3>& layer) const {
    const uint8_t* const rows[3] = {in.at(y - 1), in.at(y), in.at(y + 1)};
    conv_row(rows, out.at(y), layer, span_, args_.image.width, sums_);
  }

  // Interleaves the image's rows y - 1, y and y + 1 to the pieces that conv1 reads.
  void stack(int64_t y) const {
    const uint8_t* const rows[3] = {pixels_.at(y - 1), pixels_.at(y), pixels_.at(y + 1)};
    const Bytes pixels = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const auto four = [&](int64_t x) {
      Bytes four = _mm512_maskz_permutexvar_epi32(0x1111, pixels, load_bytes(rows[0] + x * kLane));
      four = _mm512_mask_permutexvar_epi32(four, 0x2222, pixels, load_bytes(rows[1] + x * kLane));
      return _mm512_mask_permutexvar_epi32(four, 0x4444, pixels, load_bytes(rows[2] + x * kLane));
    };
    Pieces pieces(stacked_, four(-4));
    for (int64_t x = 0; x <= columns(); x += 4) pieces.put(four(x));
  }

  const Tiles tiles_;
  const EncodeInt8Args& args_;
  const EncoderInt8Pack& pack_;
  const Task& task_;
  const HalfSpan span_;
  Scratch scratch_;
  const ByteRows pixels_, rows1_, rows2_, rows3_;
  uint8_t* const stacked_;
  int32_t* const sums_;
  const Planes branches_;
};

// The only function here that is not inline.
void encode_int8(const EncodeInt8Args& args, const Task& task) {
  encode_rows(AmxLayers(args, task), task, args.image.height);
}

}  // namespace wae::WAE_ISA
