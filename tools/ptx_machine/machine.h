// The machine as translated kernels see it: a thread, its memory accesses, and what it can wait for.
#pragma once
#include <cstdint>
#include <cstring>

using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using s8 = int8_t;
using s16 = int16_t;
using s32 = int32_t;
using s64 = int64_t;

enum class Space : u32 { generic, global, shared, constant };

// A device address is (slot + 1) << 40 plus an offset, so that an overrun cannot land in another buffer.
constexpr int kSlotShift = 40;
constexpr u64 kSharedWindow = 0xfff0ull << kSlotShift;
constexpr u64 kLocalWindow = 0xfff1ull << kSlotShift;
constexpr u64 kParamWindow = 0xfff2ull << kSlotShift;
constexpr u64 kWindow = ~0ull << kSlotShift;

struct Block;
struct Warp;

struct Thread {
  u32 id, lane;
  u32 tid[3], ntid[3], ctaid[3], nctaid[3];
  u32 shared_bytes, dynamic_shared_bytes;
  const u8* params;
  u8* local;
  u32 local_bytes, param_bytes;
  Warp* warp;
  Block* block;
  u32 clock;         // 1 + the number of releases (barriers, warp syncs) so far
  const u32* known;  // [thread]: that thread's releases that this one has acquired by block barriers
  u32 lanes[32];     // [lane]: the same within the warp, by warp synchronisation
  void* stack_pointer;
  u32 waits_at;    // the site of the barrier or warp instruction where it waits
  u32 arrived_at;  // a bit for each barrier at which it arrived and which is not complete
  u64 path;        // a hash of its ways at the branches that have not rejoined
  bool exited;
};

using Collective = void (*)(Warp&, u32 mask, u32 site);

// `site`, which most functions take, is the index of the PTX statement, for messages and for counting.
[[noreturn]] void fail(Thread&, u32 site, const char* format, ...) __attribute__((format(printf, 3, 4)));
const u8* load(Thread&, Space, u64 address, u32 size, u32 site);
void store(Thread&, Space, u64 address, const void* value, u32 size, u32 site);
u8* atomic(Thread&, Space, u64 address, u32 size, u32 site);
void predicated_off(Thread&, u32 site);
void barrier(Thread&, u32 id, u32 count, bool waits, bool aligned, u32 site);
int barrier_reduce(Thread&, u32 id, u32 count, int value, char op, u32 site);
void warp_barrier(Thread&, u32 mask);
void collective(Thread&, u32 mask, Collective, void* operands, u32 site);
void copy_async(Thread&, u64 to, u64 from, u32 size, u32 from_size, u32 site);
void copy_async_commit(Thread&);
void copy_async_wait(Thread&, u32 newest_left);
// A branch to statement `way`, while all ways from it meet at another one, `join`; and the arrival at such a statement.
void diverge(Thread&, u32 join, u32 way, u32 site);
void rejoin(Thread&, u32 join);
void loop_step(Thread&, u32 site);  // at a backward branch: lets other threads run, and ends endless loops
u8* own_memory(Thread&, u64 address, u32 size, u32 site);  // local and param windows

template <class T>
T get(const void* from, int offset = 0) {
  T value;
  memcpy(&value, static_cast<const u8*>(from) + offset, sizeof value);
  return value;
}
template <class T>
void put(void* to, int offset, T value) {
  memcpy(static_cast<u8*>(to) + offset, &value, sizeof value);
}
