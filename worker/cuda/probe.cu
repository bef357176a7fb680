// Reads a buffer once, to measure what memory gives.
#ifndef KVASIR_ON_HOST
extern "C" __global__ void probe_read(const uint4 *source, unsigned int *sum, unsigned long long len) {
  unsigned int local = 0;
  for (unsigned long long at = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; at < len; at += (unsigned long long)gridDim.x * blockDim.x) {
    uint4 piece = source[at];
    local ^= piece.x ^ piece.y ^ piece.z ^ piece.w;
  }
  if (local == 0x9e3779b9u) *sum = local;
}
#endif
