// PyTorch's time for the same work on the same GPU, if python3 can import it.
import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'

/** Seconds of PyTorch by the name of a kernel or step: eager, and compiled. */
export interface TorchTimes {
  torch: string
  device: string
  seconds: Record<string, { eager: number; compile?: number; compile_error?: string }>
}

/** Runs cuda/torch_bench.py, which takes some minutes. Returns a reason if that is impossible. */
export function torchTimes(): TorchTimes | string {
  const importable = spawnSync('python3', ['-c', 'import torch; assert torch.cuda.is_available()'])
  if (importable.status !== 0) return 'python3 has no torch with a GPU'
  const script = fileURLToPath(new URL('../../cuda/torch_bench.py', import.meta.url))
  const { status, stdout, stderr } = spawnSync('python3', [script], { encoding: 'utf8', maxBuffer: 1 << 26 })
  return status === 0 ? (JSON.parse(stdout) as TorchTimes) : `torch_bench.py failed: ${stderr.trim().split('\n').at(-1)}`
}
