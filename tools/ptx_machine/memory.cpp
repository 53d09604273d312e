// The machine's memory: bounds, alignment, races, asynchronous copies, and the counts of bytes, 32-byte sectors
// and shared-memory wavefronts.
#include <algorithm>

#include "machine_state.h"

namespace {

constexpr u64 kThread = 0xffff, kPending = 1 << 16, kAtomic = 1 << 17, kMatrixRead = 1 << 18,
              kMatrixWrite = 1 << 19;

u32 thread_of(u64 record) { return (record & kThread) - 1; }
u64 record(const Thread& t, u64 flags) { return (t.id + 1) | flags | static_cast<u64>(t.clock) << 32; }

// Whether the recorded access happens before what t does now. The lane recorded for a row of stmatrix passed the
// address; other lanes passed the data. So a barrier has to order the row even with that lane.
bool ordered(const Thread& t, u64 record, u64 self) {
  u32 other = thread_of(record), when = record >> 32;
  bool same = other == t.id && !((record | self) & kMatrixWrite);
  if (same || t.known[other] >= when) return true;
  return other / 32 == t.id / 32 && t.lanes[other % 32] >= when;
}

[[noreturn]] void race(Thread& t, u32 site, const char* now, const char* before, u64 record, u32 address) {
  fail(t, site, "race: %s of shared byte %u is not ordered after its %s by thread %u (a barrier is missing)",
       now, address, before, thread_of(record));
}

void check_read(Thread& t, SharedByte& byte, u64 self, u32 address, u32 site) {
  if (!byte.write) {
    if (t.block->launch->allow_uninitialized) return;
    fail(t, site, "shared byte %u is read but was never written", address);
  }
  if (byte.write & kPending)
    fail(t, site, "shared byte %u is read before the cp.async into it (by thread %u) was waited for", address,
         thread_of(byte.write));
  if (!ordered(t, byte.write, self) && !(byte.write & self & kAtomic))
    race(t, site, "read", "write", byte.write, address);
  // A reader that is ordered before this one need not be kept. Of the others two are, from different warps if
  // possible.
  u64* slot = byte.read;
  if (slot[0] && !ordered(t, slot[0], self)) {
    bool replace =
        !slot[1] || ordered(t, slot[1], self) || thread_of(slot[1]) / 32 == thread_of(slot[0]) / 32;
    if (!replace) return;
    slot++;
  }
  *slot = self;
}

void check_write(Thread& t, SharedByte& byte, u64 self, u32 address, u32 site, bool same_value) {
  if (byte.write & kPending)
    fail(t, site, "shared byte %u is written while a cp.async into it (by thread %u) is in flight", address,
         thread_of(byte.write));
  if (byte.write && !same_value && !ordered(t, byte.write, self) && !(byte.write & self & kAtomic))
    race(t, site, "write", "write", byte.write, address);
  for (u64 read : byte.read)
    if (read && !same_value && !ordered(t, read, self) && !(read & self & kAtomic) &&
        !(read & kMatrixRead && thread_of(read) / 32 == t.id / 32))
      race(t, site, "write", "read", read, address);
  byte = {self, {0, 0}};
}

bool equal(const SharedByte& a, const SharedByte& b) {
  return a.write == b.write && a.read[0] == b.read[0] && a.read[1] == b.read[1];
}

// Applies check to each byte's record. Neighbouring bytes mostly have equal records; then the outcome is copied.
template <class Check>
void each_byte(SharedByte* bytes, u32 size, Check check) {
  SharedByte before{}, after{};
  for (u32 i = 0; i < size; i++) {
    if (i && equal(bytes[i], before)) {
      bytes[i] = after;
      continue;
    }
    before = bytes[i];
    check(bytes[i], i);
    after = bytes[i];
  }
}

u8* shared_at(Thread& t, u64 address, u32 size, u32 site, const char* what) {
  if (address + size > t.shared_bytes || address > t.shared_bytes)
    fail(t, site,
         "shared %s of %u bytes at %lld is outside the %u bytes of shared memory (%u of them dynamic)", what,
         size, static_cast<long long>(address), t.shared_bytes, t.dynamic_shared_bytes);
  if (address % size) fail(t, site, "misaligned shared %s of %u bytes at %llu", what, size, address + 0ull);
  return t.block->shared.data() + address;
}

void write_shared(Thread& t, u64 address, const void* value, u32 size, u64 flags, u32 site) {
  u8* at = shared_at(t, address, size, site, "write");
  bool same = !memcmp(at, value, size);
  each_byte(&t.block->shadow[address], size,
            [&](SharedByte& b, u32 i) { check_write(t, b, record(t, flags), address + i, site, same); });
  memcpy(at, value, size);
}

u8* global_at(Thread& t, u64 address, u32 size, u32 site, bool writes, bool counted = true) {
  Launch& l = *t.block->launch;
  const char* what = writes ? "write" : "read";
  u64 slot = (address >> kSlotShift) - 1, offset = address & ~kWindow;
  bool before_next = offset >> (kSlotShift - 1) && slot + 1 < l.buffer_count && l.buffers[slot + 1].base;
  if (before_next)
    fail(t, site, "global %s of %u bytes, %llu bytes before #%llu#", what, size, ~kWindow - offset + 1ull,
         slot + 1ull);
  if (slot >= l.buffer_count || !l.buffers[slot].base)
    fail(t, site, "global %s of %u bytes at 0x%llx, which is in no buffer", what, size, address + 0ull);
  Buffer& b = l.buffers[slot];
  if (offset < b.low || offset + size > b.high)
    fail(t, site, "global %s of %u bytes at byte %lld of #%llu#, which has %llu bytes", what, size,
         static_cast<long long>(offset - b.low), slot + 0ull, b.high - b.low + 0ull);
  if (address % size)
    fail(t, site, "misaligned global %s of %u bytes at byte %llu of #%llu#", what, size,
         offset - b.low + 0ull, slot + 0ull);
  if (writes && !b.writable) fail(t, site, "global write to #%llu#, which is read-only", slot + 0ull);
  if (!counted) return b.base + offset;
  (writes ? b.written_bytes : b.read_bytes) += size;
  (writes ? l.written_bytes : l.read_bytes) += size;
  return b.base + offset;
}

void count(Launch& l, const RequestQueue& q, const Request& r) {
  if (!r.active) return;
  u32 lanes = 0;
  if (q.shared) {
    u32 per_phase = q.size <= 4 ? 32 : 128 / q.size;
    for (u32 first = 0; first < 32; first += per_phase) {
      u32 addresses[32], n = 0;
      for (u32 lane = first; lane < first + per_phase; lane++)
        if (r.active >> lane & 1) addresses[n++] = r.address[lane];
      lanes += n;
      l.shared_wavefronts += wavefronts(addresses, n, q.size);
      l.shared_ideal_wavefronts += n > 0;
    }
    (q.writes ? l.shared_written_bytes : l.shared_read_bytes) += lanes * q.size;
    return;
  }
  u64 sectors[32];
  u32 n = 0;
  for (u32 lane = 0; lane < 32; lane++) {
    if (!(r.active >> lane & 1)) continue;
    u64 sector = r.address[lane] >> 5;  // an aligned access of up to 16 bytes lies in one sector
    if (std::find(sectors, sectors + n, sector) == sectors + n) sectors[n++] = sector;
  }
  (q.writes ? l.written_sectors : l.read_sectors) += n;
}

void request(Thread& t, u32 site, u64 address, u32 size, bool shared, bool writes, bool active) {
  Warp& w = *t.warp;
  RequestQueue& q = w.queues[site];
  if (!q.size && active) {
    q.size = size;
    q.shared = shared;
    q.writes = writes;
  }
  if (!q.open) w.open.push_back(site);
  q.open = true;
  u32 index = q.executed[t.lane]++;
  if (index >= q.requests.size()) q.requests.resize(index + 1);
  Request& r = q.requests[index];
  r.address[t.lane] = address;
  r.active |= active << t.lane;
  r.arrived |= 1u << t.lane;
  if (index != q.finished || (w.alive & ~r.arrived)) return;
  count(*t.block->launch, q, r);
  if (++q.finished == q.requests.size()) q.restart();
}

Space resolve(Space space, u64& address) {
  if (space != Space::generic) return space;
  if ((address & kWindow) != kSharedWindow) return Space::global;
  address &= ~kWindow;
  return Space::shared;
}

bool owned(Space space, u64 address) {
  u64 window = address & kWindow;
  return space == Space::generic && (window == kLocalWindow || window == kParamWindow);
}

}  // namespace

u64 wavefronts(const u32* addresses, u32 lanes, u32 size) {
  u32 words[32][32], count[32] = {}, most = 0;
  for (u32 lane = 0; lane < lanes; lane++)
    for (u32 word = addresses[lane] / 4; word <= (addresses[lane] + size - 1) / 4; word++) {
      u32 bank = word % 32;
      u32* seen = words[bank];
      if (std::find(seen, seen + count[bank], word) != seen + count[bank]) continue;
      seen[count[bank]++] = word;
      most = std::max(most, count[bank]);
    }
  return most;
}

void flush_requests(Warp& w) {
  for (u32 site : w.open) {
    RequestQueue& q = w.queues[site];
    for (u32 i = q.finished; i < q.requests.size(); i++) count(*w.block->launch, q, q.requests[i]);
    q.restart();
    q.open = false;
  }
  w.open.clear();
}

const u8* load(Thread& t, Space space, u64 address, u32 size, u32 site) {
  if (owned(space, address)) return own_memory(t, address, size, site);
  if (space == Space::constant) return global_at(t, address, size, site, false, false);
  space = resolve(space, address);
  request(t, site, address, size, space == Space::shared, false, true);
  if (space == Space::global) return global_at(t, address, size, site, false);
  u8* at = shared_at(t, address, size, site, "read");
  each_byte(&t.block->shadow[address], size,
            [&](SharedByte& b, u32 i) { check_read(t, b, record(t, 0), address + i, site); });
  return at;
}

void store(Thread& t, Space space, u64 address, const void* value, u32 size, u32 site) {
  u8* at;
  if (owned(space, address)) {
    at = own_memory(t, address, size, site);
  } else {
    space = resolve(space, address);
    request(t, site, address, size, space == Space::shared, true, true);
    if (space == Space::global) {
      at = global_at(t, address, size, site, true);
    } else {
      write_shared(t, address, value, size, 0, site);
      return;
    }
  }
  memcpy(at, value, size);
}

u8* atomic(Thread& t, Space space, u64 address, u32 size, u32 site) {
  space = resolve(space, address);
  request(t, site, address, size, space == Space::shared, true, true);
  if (space == Space::global) {
    global_at(t, address, size, site, false);
    return global_at(t, address, size, site, true);
  }
  u8* at = shared_at(t, address, size, site, "atomic");
  each_byte(&t.block->shadow[address], size, [&](SharedByte& b, u32 i) {
    check_read(t, b, record(t, kAtomic), address + i, site);
    check_write(t, b, record(t, kAtomic), address + i, site, false);
  });
  return at;
}

u8* own_memory(Thread& t, u64 address, u32 size, u32 site) {
  bool param = (address & kWindow) == kParamWindow;
  const char* what = param ? "parameter" : "local";
  u64 offset = address & ~kWindow, limit = param ? t.param_bytes : t.local_bytes;
  if (offset + size > limit)
    fail(t, site, "access of %u bytes at byte %llu is outside the %llu bytes of %s memory", size,
         offset + 0ull, limit + 0ull, what);
  if (offset % size)
    fail(t, site, "misaligned access of %u bytes at byte %llu of %s memory", size, offset + 0ull, what);
  return (param ? const_cast<u8*>(t.params) : t.local) + offset;
}

void predicated_off(Thread& t, u32 site) { request(t, site, 0, 0, false, false, false); }

void need_row(Thread& t, u32 address, u32 site) { shared_at(t, address, 16, site, "read"); }

u8* shared_collective_read(Thread& t, u32 address, u32 size, u32 site) {
  u8* at = shared_at(t, address, size, site, "read");
  each_byte(&t.block->shadow[address], size,
            [&](SharedByte& b, u32 i) { check_read(t, b, record(t, kMatrixRead), address + i, site); });
  return at;
}

void shared_collective_write(Thread& t, u32 address, const void* value, u32 size, u32 site) {
  write_shared(t, address, value, size, kMatrixWrite, site);
}

void copy_async(Thread& t, u64 to, u64 from, u32 size, u32 from_size, u32 site) {
  if (from_size > size) fail(t, site, "cp.async of %u bytes reads %u bytes", size, from_size);
  PendingCopy copy{static_cast<u32>(to), size, {}};
  u8* at = shared_at(t, to, size, site, "cp.async write");
  request(t, site, to, size, true, true, true);
  request(t, site + 1, from, size, false, false, from_size > 0);
  if (from % size) fail(t, site, "misaligned cp.async of %u bytes from 0x%llx", size, from + 0ull);
  if (from_size) {
    // Only what is read is checked and counted; the rest is zeros. It may have any size.
    const u8* data = nullptr;
    for (u32 done = 0, part; done < from_size; done += part) {
      part = 16;
      while (part > from_size - done || (from + done) % part) part /= 2;
      data = global_at(t, from + done, part, site, false);
      memcpy(copy.data + done, data, part);
    }
  }
  each_byte(&t.block->shadow[to], size,
            [&](SharedByte& b, u32 i) { check_write(t, b, record(t, kPending), to + i, site, false); });
  memset(at, 0xff, size);
  t.block->copies[t.id].back().push_back(copy);
}

void copy_async_commit(Thread& t) { t.block->copies[t.id].emplace_back(); }

void copy_async_wait(Thread& t, u32 newest_left) {
  auto& groups = t.block->copies[t.id];
  bool everything = newest_left == ~0u;  // wait_all: uncommitted copies too
  if (everything) groups.emplace_back(), newest_left = 0;
  while (groups.size() > newest_left + 1) {
    for (const PendingCopy& copy : groups.front()) {
      memcpy(&t.block->shared[copy.to], copy.data, copy.size);
      std::fill_n(&t.block->shadow[copy.to], copy.size, SharedByte{record(t, 0), {0, 0}});
    }
    groups.pop_front();
  }
}

Block::Block(Launch& l, u32 x, u32 y, u32 z, u64 seed) : launch(&l), random{seed} {
  u32 n = l.block[0] * l.block[1] * l.block[2], shared_bytes = l.static_shared + l.dynamic_shared;
  threads.resize(n);
  warps.resize((n + 31) / 32);
  shared.assign(shared_bytes, 0xff);
  shadow.assign(shared_bytes, {});
  local.assign(static_cast<size_t>(n) * l.local_bytes, 0xff);
  copies.resize(n);
  forks.resize(n);
  knowledge.emplace_back(n, 0);
  alive = n;
  for (u32 i = 0; i < warps.size(); i++) {
    u32 lanes = std::min(32u, n - 32 * i);
    warps[i].block = this;
    warps[i].first = 32 * i;
    warps[i].alive = lanes == 32 ? ~0u : (1u << lanes) - 1;
    warps[i].queues.resize(l.sites);
  }
  for (u32 i = 0; i < n; i++) {
    Thread& t = threads[i];
    t = {};
    t.id = i;
    t.lane = i % 32;
    u32 tid[] = {i % l.block[0], i / l.block[0] % l.block[1], i / l.block[0] / l.block[1]},
        ctaid[] = {x, y, z};
    std::copy(tid, tid + 3, t.tid);
    std::copy(ctaid, ctaid + 3, t.ctaid);
    std::copy(l.block, l.block + 3, t.ntid);
    std::copy(l.grid, l.grid + 3, t.nctaid);
    t.shared_bytes = shared_bytes;
    t.dynamic_shared_bytes = l.dynamic_shared;
    t.params = l.params;
    t.param_bytes = l.param_bytes;
    t.local = local.data() + static_cast<size_t>(i) * l.local_bytes;
    t.local_bytes = l.local_bytes;
    t.warp = &warps[i / 32];
    t.block = this;
    t.clock = 1;
    t.known = knowledge.front().data();
    copies[i].emplace_back();
  }
}
