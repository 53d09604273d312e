// The state behind machine.h: blocks, warps, barriers, and the launch record shared with Python (launch.py).
#pragma once
#include <algorithm>
#include <deque>
#include <limits>
#include <vector>

#include "machine.h"

struct Buffer {   // mirrored in launch.py
  u8* base;       // host address of device address slot << 40
  u64 low, high;  // the registered bytes, relative to base
  u64 writable;
  u64 read_bytes, written_bytes;
};

struct Launch {  // mirrored in launch.py
  void (*kernel)(Thread&);
  const u8* params;
  Buffer* buffers;
  u64 seed, loop_limit;
  u32 grid[3], block[3];
  u32 buffer_count, param_bytes, local_bytes, sites;
  u32 static_shared, dynamic_shared;
  u32 shuffle_blocks, allow_uninitialized;
  u32 target;  // 75 is sm_75
  // results
  u64 read_bytes, written_bytes, read_sectors, written_sectors;
  u64 shared_wavefronts, shared_ideal_wavefronts, shared_read_bytes, shared_written_bytes;
  u64 barriers;
  u32 failed, failed_site, failed_thread[3], failed_block[3];
  char message[1024];
};

struct Failed {};

struct Random {  // splitmix64
  u64 state;
  u64 operator()() {
    u64 z = state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
  }
};

struct Barrier {
  u32 count = 0;
  bool aligned = false;
  int value = 0, last_value = 0;
  std::vector<Thread*> arrived, waiting;
};

// Lanes that wait at the same warp-synchronous statement with the same mask.
struct Group {
  u32 mask, arrived, parked, site;
  Collective op;
};

// One execution of a memory statement by a warp, collected lane by lane, to count sectors and bank conflicts.
struct Request {
  u64 address[32];
  u32 active, arrived;
};

struct RequestQueue {  // of one statement
  std::vector<Request> requests;
  u32 finished = 0;
  u32 executed[32] = {};
  u32 size = 0;
  bool shared = false, writes = false, open = false;
  void restart() {
    requests.clear();
    finished = 0;
    std::fill(executed, executed + 32, 0);
  }
};

struct Warp {
  Block* block;
  u32 first, alive;
  void* operands[32];
  std::vector<Group> groups;
  std::vector<RequestQueue> queues;  // [site]
  std::vector<u32> open;             // sites with requests since the last flush
  Thread* thread(u32 lane) const;
};

// The last accesses to one byte of shared memory. 0 is none; otherwise thread + 1, flags and the thread's clock.
struct SharedByte {
  u64 write, read[2];
};

struct PendingCopy {
  u32 to, size;
  u8 data[16];
};

// Branches whose ways meet at the same statement: that statement, the site of the last branch, and the path before them.
struct Fork {
  u32 join, site;
  u64 path;
};

struct Block {
  Block(Launch&, u32 x, u32 y, u32 z, u64 seed);
  Launch* launch;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<u8> shared, local;
  std::vector<SharedByte> shadow;
  std::vector<std::deque<std::vector<PendingCopy>>> copies;  // [thread]: committed groups, then the open one
  std::vector<std::vector<Fork>> forks;                      // [thread]: those that have not rejoined
  std::deque<std::vector<u32>> knowledge;
  Barrier barriers[16];
  u32 alive;
  u64 loop_steps = 0;
  Random random;
  std::vector<Thread*> runnable;
  Thread* running = nullptr;
  void* scheduler = nullptr;
  bool in_scheduler = true;
};

inline Thread* Warp::thread(u32 lane) const { return &block->threads[first + lane]; }

extern thread_local Block* current_block;

void exit_thread(Thread&);
void need_one_path(Thread&, Thread& other, u32 site);  // for an .aligned instruction
void flush_requests(Warp&);  // counts incomplete requests; then all lanes count from zero again
u64 wavefronts(const u32* addresses, u32 lanes, u32 size);  // of one phase of a shared-memory access
void need_row(Thread&, u32 address, u32 site);              // a valid address for ldmatrix
// One row of ldmatrix, read by all lanes, and one row of stmatrix, written by several lanes.
u8* shared_collective_read(Thread&, u32 address, u32 size, u32 site);
void shared_collective_write(Thread&, u32 address, const void* value, u32 size, u32 site);
