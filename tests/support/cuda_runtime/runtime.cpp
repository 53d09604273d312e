// A CUDA runtime without a GPU, to be preloaded: torch sees two devices, whose memory is the process's own.
//
// Each device has its memory at a fixed address, which the PTX machine uses as a device address too. Launches go to a
// function that the test sets. A generated file defines the other functions of the runtime and the driver that torch
// imports; they do nothing and succeed.

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>

#undef cudaGetDeviceProperties

namespace {

// As an A100, but small.
constexpr int kDevices = 2, kCapability = 80, kMultiprocessors = 2, kSharedBytes = 163 * 1024;
constexpr int kStaticBytes = 1024;  // of each kernel, as the compiler lists for newer GPUs
constexpr size_t kMemory = size_t{1} << 30;
using Launch = int (*)(const void* kernel, int device, int grid, int block, void* parameters,
                       int shared_bytes, void* stream);

thread_local int current = 0;
thread_local cudaError_t last = cudaSuccess;
bool has_image = true;     // whether the library holds code for these devices
int target = kCapability;  // of the library's kernels
Launch launch = nullptr;

char* memory_of(int device) { return reinterpret_cast<char*>(size_t(65 + device) << 40); }

cudaError_t failed(cudaError_t error) { return last = error; }

}  // namespace

extern "C" {

void fake_set_launch(Launch function) { launch = function; }
void fake_set_image(int present) { has_image = present != 0; }
void fake_set_target(int capability) { target = capability; }

cudaError_t cudaGetDeviceCount(int* count) {
  *count = kDevices;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = current;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  current = device;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }
cudaError_t cudaGetLastError() {
  const cudaError_t error = last;
  last = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return last; }
const char* cudaGetErrorString(cudaError_t error) {
  static thread_local char text[32];
  std::snprintf(text, sizeof text, "error %d", static_cast<int>(error));
  return text;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int) {
  switch (which) {
    case cudaDevAttrComputeCapabilityMajor:
      *value = kCapability / 10;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = kCapability % 10;
      break;
    case cudaDevAttrMultiProcessorCount:
      *value = kMultiprocessors;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = kSharedBytes;
      break;
    default:
      *value = 0;
  }
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  std::memset(properties, 0, sizeof *properties);
  properties->totalGlobalMem = kMemory, properties->warpSize = 32;
  properties->major = kCapability / 10, properties->minor = kCapability % 10;
  properties->multiProcessorCount = kMultiprocessors, properties->sharedMemPerBlockOptin = kSharedBytes;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0, *greatest = -1;
  return cudaSuccess;
}

// Memory is taken and never returned. It is filled with NaN, so that tests notice what a kernel does not write.
cudaError_t cudaMalloc(void** made, size_t size) {
  static std::mutex mutex;
  static size_t taken[kDevices];
  const std::lock_guard lock(mutex);
  char* memory = memory_of(current);
  if (taken[current] == 0) {
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
    if (mmap(memory, kMemory, PROT_READ | PROT_WRITE, kFlags, -1, 0) != memory) std::abort();
  }
  const size_t rounded = (size + 511) / 512 * 512;
  if (taken[current] + rounded > kMemory) return failed(cudaErrorMemoryAllocation);
  *made = memory + taken[current];
  taken[current] += rounded;
  std::memset(*made, 0xff, size);
  return cudaSuccess;
}
cudaError_t cudaHostAlloc(void** made, size_t size, unsigned) {
  *made = std::malloc(size);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) {
  std::free(memory);
  return cudaSuccess;
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void*) {
  std::memset(attributes, 0, sizeof *attributes);  // of memory that CUDA does not know
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = kMemory;
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t size, cudaMemcpyKind, cudaStream_t) {
  std::memmove(to, from, size);
  return cudaSuccess;
}

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned, int) {
  *stream = static_cast<cudaStream_t>(std::malloc(1));  // its address is all that is needed
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = static_cast<cudaEvent_t>(std::malloc(1));
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** found, unsigned, unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  *found = nullptr;
  if (result != nullptr) *result = cudaDriverEntryPointSymbolNotFound;
  return cudaErrorNotSupported;
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  if (!has_image) return failed(cudaErrorNoKernelImageForDevice);
  std::memset(attributes, 0, sizeof *attributes);
  attributes->ptxVersion = target, attributes->binaryVersion = kCapability;
  attributes->sharedSizeBytes = kStaticBytes;
  return cudaSuccess;
}
cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int bytes) {
  if (!has_image) return failed(cudaErrorNoKernelImageForDevice);
  return bytes <= kSharedBytes - kStaticBytes ? cudaSuccess : failed(cudaErrorInvalidValue);
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  *blocks = 1;
  return cudaSuccess;
}
cudaError_t cudaLaunchKernel(const void* kernel, dim3 grid, dim3 block, void** parameters,
                             size_t shared_bytes, cudaStream_t stream) {
  const bool is_ours = launch != nullptr && shared_bytes <= kSharedBytes - kStaticBytes;
  const int status = is_ours ? launch(kernel, current, static_cast<int>(grid.x), static_cast<int>(block.x),
                                      parameters[0], static_cast<int>(shared_bytes), stream)
                             : 1;
  return status == 0 ? cudaSuccess : failed(cudaErrorLaunchFailure);
}

// Of the driver: every device is in use.
int cuDevicePrimaryCtxGetState(int, unsigned* flags, int* active) {
  *flags = 0, *active = 1;
  return 0;
}

// The registration of torch's own kernels, none of which is launched.
void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
}
