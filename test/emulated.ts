// The CUDA backend as g++ compiles it, and the native kernel tests on it.
import { execFileSync, spawnSync } from 'node:child_process'
import { join } from 'node:path'

const build = join(import.meta.dirname, '..', 'build')

/** Builds device `cuda-emulated` and the program of the kernel tests. */
export function buildEmulated(): void {
  execFileSync(
    'cmake',
    [
      '--build',
      build,
      '--target',
      'looplm_cuda_emulated',
      'looplm_kernel_tests',
      'looplm_kernel_bench',
      'looplm_cublaslt_double',
    ],
    {
      stdio: 'pipe',
    },
  )
}

/** The library's file: as LOOPLM_CUDA_LIBRARY it makes device `cuda` of the emulator. */
export const emulatedLibrary = join(build, 'Release', 'looplm_cuda_emulated.so')

/** What stands in for cuBLASLt, to be named by LOOPLM_CUBLASLT. */
export const cublasLtDouble = join(build, 'Release', 'looplm_cublaslt_double.so')

/** Lines "not ok …" of the kernel tests on `cuda-emulated`, how many were ok, and how the device describes itself after them. */
export function emulatedKernelTests(
  args: string[],
  env: NodeJS.ProcessEnv = {},
): { failures: string[]; passed: number; status: number | null; description: string } {
  const { stdout, stderr, status } = spawnSync(join(build, 'looplm_kernel_tests'), ['--backend', emulatedLibrary, ...args], {
    encoding: 'utf8',
    maxBuffer: 1 << 26,
    env: { ...process.env, ...env },
  })
  const lines = `${stdout}${stderr}`.split('\n')
  return {
    failures: lines.filter((l) => l.startsWith('not ok')),
    passed: lines.filter((l) => l.startsWith('ok')).length,
    status,
    description: lines.filter((l) => l.startsWith('# ')).join('\n'),
  }
}
