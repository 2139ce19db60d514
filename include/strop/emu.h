// The emulator: runs CUDA kernels on the CPU, from the same source, and names every mistake that it sees.
//
// A program that is compiled for it (docs/debugging.md: link the target strop::emulator) launches kernels with
// strop::launch as ever; a launch runs at once, on the calling thread. What was found is printed, counted, and makes
// cudaDeviceSynchronize fail. All functions are of the calling thread alone, and none throws.
#pragma once

#include <cstdint>
#include <functional>
#include <initializer_list>
#include <span>
#include <string>
#include <vector>

#include "strop/tensor_view.h"

namespace strop::emu {

// ---- Devices --------------------------------------------------------------------------------------------------------

struct Device {
  int capability = 90;  // 10 * major + minor; clusters from 90 on
  int multiprocessors = 8;
  std::size_t shared_bytes_per_block = 227 * 1024;  // the most that one block may opt into
  std::size_t shared_bytes_per_multiprocessor = 228 * 1024;
};
// The emulated machine has one device like that at first. A thread's current one is cudaSetDevice's; set_devices is for
// a program's beginning, since launchers remember what a device has.
void set_devices(const std::vector<Device>& devices);
const Device& device();  // the current one

// ---- The schedule ---------------------------------------------------------------------------------------------------

// Which of the threads that can go on does so at each synchronisation point.
enum class Order : std::uint8_t { kForward /* by index */, kReverse, kRandom };
struct Schedule {
  Order order = Order::kRandom;
  std::uint64_t seed = 1;  // of kRandom; each launch draws its own from it, and a report names it
};
// Every launch from here on. The environment sets the first: STROP_EMU_ORDER (forward, reverse, random) and
// STROP_EMU_SEED.
void set_schedule(const Schedule& schedule);
// The next launch alone, with exactly this schedule: to replay the one that a report names.
void replay(const Schedule& schedule);

// ---- Names ----------------------------------------------------------------------------------------------------------

// What a launch may do with a buffer's elements. The contents of an output and of scratch are taken for not yet
// written; what a launch leaves so is reported of an output alone.
enum class Access : std::uint8_t { kInput, kOutput, kInOut, kScratch };

struct NamedView {
  const char* name;
  TensorView view;
  Access access = Access::kInput;
};

// Gives memory on the emulated device names, shapes and a way it may be used, for as long as this lives. Buffers in
// which something is named may then be accessed in named elements alone.
class Names {
 public:
  Names(std::initializer_list<NamedView> views) : Names(std::span<const NamedView>(views.begin(), views.size())) {}
  explicit Names(std::span<const NamedView> views);
  ~Names();
  Names(const Names&) = delete;
  Names& operator=(const Names&) = delete;

 private:
  std::size_t before_;
};

// ---- Reports --------------------------------------------------------------------------------------------------------

enum class Kind : std::uint8_t {
  kOutOfBounds,       // of a buffer or of shared memory, or wild
  kMisaligned,        // an address that is no multiple of the access's size
  kUninitialised,     // a read of bytes that nobody wrote
  kReadOnly,          // a write to an input
  kUnwritten,         // an element of an output that the launch left alone
  kRace,              // two accesses, one a write, with nothing between that orders them
  kStaleRead,         // through the read-only cache, of what the launch wrote
  kDivergentBarrier,  // threads of a block at different __syncthreads, or some have exited
  kWarp,              // lanes that do not meet: exited, other mask, other operation; a shuffle from outside the mask
  kCopyInFlight,      // an access that may meet an asynchronous copy: nothing orders it after the copy
  kBarrierMisuse,     // an mbarrier that is not initialised, has too many arrivals or bytes, …
  kExitedBlock,       // shared memory of a cluster's block that may have exited, or may not have begun
  kDeadlock,          // nobody can go on
  kLaunch,            // the launch was refused
};
const char* kind_name(Kind kind);

struct Frame {
  std::string function, file;
  int line = 0;
};

struct Report {
  Kind kind = Kind::kOutOfBounds;
  std::string kernel;
  std::vector<Frame> where;  // innermost first; the first is the line in the kernel
  std::vector<Frame> other;  // of a race: the earlier access; else the copy, barrier or shuffle that it clashes with
  std::string text;          // all of it, as printed
  Schedule schedule;         // to replay
};

// Reports of this thread's launches so far, oldest first, and forgetting them.
const std::vector<Report>& reports();
void clear_reports();
// Whether reports are printed to stderr as well; they are at first.
void print_reports(bool print);

// For gdb (docs/debugging.md). A finding calls the first, in the thread that made it: `break strop_emu_found`, then
// `up` to the kernel. The second says whether the running thread is that one: `break kernel.cu:30 if strop_emu_is(1,
// 102)`.
extern "C" void strop_emu_found();
extern "C" bool strop_emu_is(unsigned block, unsigned thread);

// ---- Counts ---------------------------------------------------------------------------------------------------------

// Of one named view, or of a whole buffer where nothing in it is named. Memory that views share counts as that of the
// one that was named first.
struct BufferCounts {
  std::string name;
  std::int64_t size = 0;                           // bytes of its elements, those that lie on each other once
  std::int64_t reads = 0, writes = 0;              // bytes moved by all threads together
  std::int64_t bytes_read = 0, bytes_written = 0;  // different ones
};

// Of one line of the kernel that accesses memory, and one buffer.
struct LineCounts {
  Frame where;
  std::string buffer;  // as in BufferCounts; "shared memory"
  bool shared = false, write = false;
  std::int64_t threads = 0;  // accesses
  std::int64_t warps = 0;    // the same, a warp's lanes together
  // Global memory: 32-byte sectors moved, and what the bytes would need at the least. Shared memory: passes over the
  // banks, and the least for that many bytes.
  std::int64_t moved = 0, least = 0;
};

struct Counts {
  std::string kernel;
  unsigned grid = 0, block = 0, cluster = 0;
  std::size_t shared_bytes = 0;
  std::int64_t barriers = 0, switches = 0;
  std::vector<BufferCounts> buffers;
  std::vector<LineCounts> lines;
};

// Counting costs time: off at first. The counts are those of this thread's last launch; without counting they have no
// buffers and no lines.
void set_counting(bool counting);
const Counts& counts();
// Who touches what in the last launch that was counted: a line of characters a buffer, one for each of `columns` equal
// parts of its elements in row-major order. A digit or letter is a block (0 to 9, a to z, A to Z, and again from 0),
// '*' several, '.' nobody.
std::string memory_map(int columns = 64);

}  // namespace strop::emu
