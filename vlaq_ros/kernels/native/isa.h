#pragma once

#include "job.h"

namespace vlaq {

// Null when VLAQ_ISA names instructions that this processor cannot run.
const Kernels* active_kernels();

}  // namespace vlaq
