// Measures how many multiply-adds one core does per second: the bound in docs/kernels.md. x86-64 only.
//
//     g++ -O2 benches/fma_rate.cpp -o build/fma_rate && build/fma_rate

#include <chrono>
#include <cstdio>

// Twelve independent chains hide the latency of every current processor.
#define CHAINS(f) f(0) f(1) f(2) f(3) f(4) f(5) f(6) f(7) f(8) f(9) f(10) f(11)
#define AVX2_STEP(i) "vfmadd231ps %%ymm12, %%ymm12, %%ymm" #i "\n"
#define AVX512_STEP(i) "vfmadd231ps %%zmm12, %%zmm12, %%zmm" #i "\n"
// The registers that the code below overwrites; the compiler knows the wider ones by these names, too.
#define OVERWRITTEN                                                                                          \
  "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", \
      "xmm13", "xmm14", "xmm15"

template <class Step>
double gigaflops(int lanes, const Step& step) {
  constexpr int kSteps = 20'000'000;
  double best = 0;
  for (int round = 0; round < 5; ++round) {
    const auto start = std::chrono::steady_clock::now();
    asm volatile("vzeroall" ::: OVERWRITTEN);  // some values, such as subnormal ones, would take longer
    for (int i = 0; i < kSteps; ++i) step();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    const double rate = 2.0 * lanes * 12 * kSteps / seconds.count() / 1e9;
    if (rate > best) best = rate;
  }
  return best;
}

int main() {
  if (__builtin_cpu_supports("fma")) {
    const double rate = gigaflops(8, [] { asm volatile(CHAINS(AVX2_STEP)::: OVERWRITTEN); });
    std::printf("AVX2:    %.0f GFLOP/s a core\n", rate);
  }
  if (__builtin_cpu_supports("avx512f")) {
    const double rate = gigaflops(16, [] { asm volatile(CHAINS(AVX512_STEP)::: OVERWRITTEN); });
    std::printf("AVX-512: %.0f GFLOP/s a core\n", rate);
  }
}
