#include "base/device.h"
#include "kernels/policy_loss/policy_loss.cuh"

namespace strop::policy_loss {

Status run_cuda(const Problem& problem, void* stream) {
  const DeviceInfo* device;
  if (Status s = current_device_info(&device); !s.ok()) return s;
  Args args;
  args.p = problem;
  args.tuning = tune(problem.reduction, problem.batch, problem.tokens, device->multiprocessors);
  args.mask = mask_format(problem.mask.dtype);
  args.segment_scale = problem.reduction == Reduction::kSequenceMean
                           ? 1.f / static_cast<float>(problem.batch > 0 ? problem.batch : 1)
                           : 1.f;

  LaunchConfig config;
  config.grid = static_cast<unsigned>(args.tuning.grid);
  config.block = static_cast<unsigned>(args.tuning.block);
  config.shared_bytes = sizeof(Shared);
  config.stream = static_cast<cudaStream_t>(stream);
  config.cooperative = true;
  return problem.grad != nullptr ? launch("policy_loss", policy_loss_kernel<true>, config, args)
                                 : launch("policy_loss", policy_loss_kernel<false>, config, args);
}

}  // namespace strop::policy_loss
