// The threads of the process that share one call at a time.
#pragma once

#include <stdint.h>

namespace vlaq {

// Calls task(context, index) for every index below `count`, each once, on at most `threads` threads.
// Threads take the next index when they are done with one. The caller takes part and returns when
// all calls have returned. When another caller has the pool, this one works alone.
void run_parallel(int threads, int64_t count, void (*task)(void* context, int64_t index),
                  void* context);

void pin_workers(const int32_t* cpus, int count);

}  // namespace vlaq
