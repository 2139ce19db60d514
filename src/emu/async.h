// Asynchronous copies and mbarriers of emulated device code; base/ptx wraps them. Addresses are checked for what the
// instructions ask: multiples of the size (cp.async) or of 16 (bulk copies), 8-byte aligned mbarriers.
#pragma once

#include <cstddef>
#include <cstdint>

namespace strop::emu {

// cp.async of 4, 8 or 16 bytes into shared memory; beyond `from_bytes` zeros. They arrive when this thread waits until
// at most `newest` of its groups are open.
void copy_async(void* to, const void* from, std::size_t bytes, std::size_t from_bytes);
void copy_async_commit();
void copy_async_wait(unsigned newest);

// cp.async.bulk: into shared memory, counted by an mbarrier; and out of it, in groups. `sources_only`: the sources may
// be written again, the bytes need not have arrived.
void bulk_load(void* to, const void* from, std::size_t bytes, void* barrier);
void bulk_store(void* to, const void* from, std::size_t bytes);
void bulk_store_commit();
void bulk_store_wait(unsigned newest, bool sources_only);

// An mbarrier for `count` arrivals a phase. An arrival may expect `bytes` of copies as well; with count 0 it only does
// that. A phase ends when all have arrived, arrivals and bytes. test and wait ask whether the phase of that parity has
// ended (that before the first one, of parity 1, has).
void mbarrier_init(void* barrier, unsigned count);
void mbarrier_arrive(void* barrier, unsigned count, std::int64_t bytes);
bool mbarrier_test(void* barrier, unsigned parity);
void mbarrier_wait(void* barrier, unsigned parity);

}  // namespace strop::emu
