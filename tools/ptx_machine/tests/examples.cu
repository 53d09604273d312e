// Kernels for test_ptx.py: correct ones, and each kind of bug that the tool must catch.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>

using bf16 = __nv_bfloat16;

namespace {

__device__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ void load_matrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ void load_matrix_x2_trans(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

#define MMA_K16(type)                                                       \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type       \
               ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" \
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])             \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

__device__ void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], half) {
  MMA_K16("f16");
}
__device__ void multiply(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], bf16) {
  MMA_K16("bf16");
}

__device__ void copy_16_bytes(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)), "l"(from) : "memory");
}
__device__ void commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int kLeft>
__device__ void wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
}

// C (m x n) = A (m x k) B (k x n). A block of 4 warps makes 64 x 8 of C, 16 of k per step, double buffered.
enum class Bug { none, wait, barrier, layout };
template <class T, Bug kBug>
__device__ void product(const T* a, const T* b, float* c, int n, int k) {
  __shared__ alignas(16) T as[2][64][24];  // rows of 48 bytes: eight of them start in different banks
  __shared__ alignas(16) T bs[2][16][8];
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row0 = blockIdx.x * 64, column0 = blockIdx.y * 8;
  auto fetch = [&](int stage, int k0) {
    int row = threadIdx.x / 2, half_row = threadIdx.x % 2 * 8;
    copy_16_bytes(&as[stage][row][half_row], a + (row0 + row) * k + k0 + half_row);
    if (threadIdx.x < 16) copy_16_bytes(&bs[stage][threadIdx.x][0], b + (k0 + threadIdx.x) * n + column0);
    commit();
  };
  float sums[4] = {};
  fetch(0, 0);
  for (int step = 0; step * 16 < k; step++) {
    if ((step + 1) * 16 < k) {
      fetch((step + 1) % 2, (step + 1) * 16);
      wait<kBug == Bug::wait ? 2 : 1>();
    } else {
      wait<0>();
    }
    __syncthreads();
    uint32_t fa[4], fb[2];
    int stage = step % 2, half_column = kBug == Bug::layout ? lane % 2 : lane / 16;
    load_matrix_x4(fa, &as[stage][warp * 16 + lane % 16][half_column * 8]);
    load_matrix_x2_trans(fb, &bs[stage][lane % 16][0]);
    multiply(sums, fa, fb, T());
    if (kBug != Bug::barrier) __syncthreads();
  }
  float* out = c + (row0 + warp * 16 + lane / 4) * n + column0 + lane % 4 * 2;
  out[0] = sums[0], out[1] = sums[1], out[8 * n] = sums[2], out[8 * n + 1] = sums[3];
}

}  // namespace

#define PRODUCT(name, T, bug)                                                       \
  extern "C" __global__ void name(const T* a, const T* b, float* c, int n, int k) { \
    product<T, bug>(a, b, c, n, k);                                                 \
  }
PRODUCT(product_f16, half, Bug::none)
PRODUCT(product_bf16, bf16, Bug::none)
PRODUCT(product_without_wait, half, Bug::wait)
PRODUCT(product_without_barrier, half, Bug::barrier)
PRODUCT(product_wrong_layout, half, Bug::layout)

// One warp, C (16 x 8) = A (16 x 8) B (8 x 8), fragments loaded straight from global memory.
extern "C" __global__ void product_tf32(const float* a, const float* b, float* c) {
  int group = threadIdx.x / 4, inner = threadIdx.x % 4;
  uint32_t fa[4], fb[2];
  for (int i = 0; i < 4; i++) {
    float x = a[(group + i % 2 * 8) * 8 + inner + i / 2 * 4];
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(fa[i]) : "f"(x));
  }
  for (int i = 0; i < 2; i++) {
    float x = b[(inner + i * 4) * 8 + group];
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(fb[i]) : "f"(x));
  }
  float s[4] = {};
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(s[0]), "+f"(s[1]), "+f"(s[2]), "+f"(s[3])
      : "r"(fa[0]), "r"(fa[1]), "r"(fa[2]), "r"(fa[3]), "r"(fb[0]), "r"(fb[1]));
  for (int i = 0; i < 4; i++) c[(group + i / 2 * 8) * 8 + inner * 2 + i % 2] = s[i];
}

// Sum of each block's part: a tree in shared memory, the last warp by shuffles.
template <bool kBarrier>
__device__ void sum_block(const float* x, float* out, int n) {
  __shared__ float part[256];
  int t = threadIdx.x, i = blockIdx.x * 256 + t;
  part[t] = i < n ? x[i] : 0;
  for (int width = 128; width >= 32; width /= 2) {
    if (kBarrier) __syncthreads();
    if (t < width) part[t] += part[t + width];
  }
  if (t >= 32) return;
  float sum = part[t];
  for (int step = 16; step; step /= 2) sum += __shfl_down_sync(~0u, sum, step);
  if (t == 0) out[blockIdx.x] = sum;
}
extern "C" __global__ void sum(const float* x, float* out, int n) { sum_block<true>(x, out, n); }
extern "C" __global__ void sum_without_barrier(const float* x, float* out, int n) {
  sum_block<false>(x, out, n);
}

extern "C" __global__ void shuffles(const int* x, int* out) {
  int v = x[threadIdx.x], *o = out + threadIdx.x * 8;
  o[0] = __shfl_up_sync(~0u, v, 3);
  o[1] = __shfl_down_sync(~0u, v, 5, 16);
  o[2] = __shfl_xor_sync(~0u, v, 9);
  o[3] = __shfl_sync(~0u, v, v & 31);
  o[4] = __ballot_sync(~0u, v & 1);
  o[5] = __reduce_add_sync(~0u, v);
  o[6] = __reduce_min_sync(~0u, v);
  o[7] = __any_sync(~0u, v > 100) + 2 * __all_sync(~0u, v > 100);
}

struct Scale {
  const float* x;
  float* y;
  float factors[3];
  int n;
};
__constant__ float offset[2] = {1, 2};
extern "C" __global__ void scale(const Scale s, int pick) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < s.n) s.y[i] = s.x[i] * s.factors[pick] + offset[pick & 1];
}

// A producer warp hands 8 pieces to a consumer warp through two buffers, with two named barriers for each
// buffer.
template <bool kWaitsForRoom>
__device__ void hand_over(const float* x, float* y) {
  __shared__ float buffer[2][32];
  int lane = threadIdx.x % 32;
  for (int i = 0; i < 8; i++) {
    int full = 1 + i % 2, room = 3 + i % 2;
    if (threadIdx.x < 32) {
      if (kWaitsForRoom && i >= 2) asm volatile("bar.sync %0, 64;" ::"r"(room) : "memory");
      buffer[i % 2][lane] = x[i * 32 + lane];
      asm volatile("bar.arrive %0, 64;" ::"r"(full) : "memory");
    } else {
      asm volatile("bar.sync %0, 64;" ::"r"(full) : "memory");
      y[i * 32 + lane] = buffer[i % 2][31 - lane];
      if (kWaitsForRoom && i < 6) asm volatile("bar.arrive %0, 64;" ::"r"(room) : "memory");
    }
  }
}
extern "C" __global__ void pipeline(const float* x, float* y) { hand_over<true>(x, y); }
extern "C" __global__ void pipeline_without_room(const float* x, float* y) { hand_over<false>(x, y); }

// Lanes of one warp exchange values through shared memory.
template <bool kSync>
__device__ void reverse_warp(const float* x, float* y) {
  volatile __shared__ float v[32];
  v[threadIdx.x] = x[threadIdx.x];
  if (kSync) __syncwarp();
  y[threadIdx.x] = v[31 - threadIdx.x];
}
extern "C" __global__ void reverse(const float* x, float* y) { reverse_warp<true>(x, y); }
extern "C" __global__ void reverse_without_sync(const float* x, float* y) { reverse_warp<false>(x, y); }

// A shuffle waits for the lanes but orders no memory: here every read comes after the write that it races
// with.
extern "C" __global__ void reverse_after_shuffle(const float* x, float* y) {
  volatile __shared__ float v[32];
  v[threadIdx.x] = x[threadIdx.x];
  float sum = __shfl_xor_sync(~0u, x[threadIdx.x], 1);
  y[threadIdx.x] = v[31 - threadIdx.x] + sum;
}

extern "C" __global__ void read_past_the_end(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x + 1];
}

extern "C" __global__ void read_misaligned(const float* x, float4* y) {
  y[threadIdx.x] = *reinterpret_cast<const float4*>(x + threadIdx.x * 4 + 1);
}

extern "C" __global__ void read_uninitialized(float* y) {
  __shared__ volatile float v[64];
  if (threadIdx.x < 63) v[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = v[threadIdx.x];
}

extern "C" __global__ void diverging_barrier(float* y) {
  if (threadIdx.x < 40) {
    asm volatile("bar.sync 1;" ::: "memory");
    y[0] = 1;
  } else {
    asm volatile("bar.sync 2;" ::: "memory");
    y[1] = 1;
  }
}

extern "C" __global__ void half_warp_shuffle(int* y) {
  if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(~0u, threadIdx.x, 1);
  __syncthreads();
}

extern "C" __global__ void endless(volatile int* y) {
  while (y[0] == 0) {
  }
}

extern __shared__ float dynamic_shared[];
extern "C" __global__ void __launch_bounds__(64) fill_dynamic(float* y, int stride) {
  dynamic_shared[threadIdx.x * stride] = threadIdx.x;
  __syncthreads();
  y[threadIdx.x] = dynamic_shared[threadIdx.x * stride];
}

extern "C" __global__ void atomics(int* total, float* sums) {
  atomicAdd(total, threadIdx.x);
  atomicMax(total + 1, threadIdx.x);
  __shared__ float s;
  if (threadIdx.x == 0) s = 0;
  __syncthreads();
  atomicAdd(&s, 0.5f);
  __syncthreads();
  if (threadIdx.x == 0) sums[blockIdx.x] = s;
}
