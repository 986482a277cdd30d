// The CUDA backend as g++ compiles it, and the native kernel tests on it.
import { join } from 'node:path'
import { build, buildTargets, type Outcome, runTests } from './native-tests.js'

/** Builds device `cuda-emulated` and the program of the kernel tests. */
export function buildEmulated(): void {
  buildTargets('looplm_cuda_emulated', 'looplm_kernel_tests', 'looplm_kernel_bench', 'looplm_cublaslt_double')
}

/** The library's file: as LOOPLM_CUDA_LIBRARY it makes device `cuda` of the emulator. */
export const emulatedLibrary = join(build, 'Release', 'looplm_cuda_emulated.so')

/**
 * The checkpoints that a device is tried with. The kernels are the same for all: the emulator, which takes seconds for each, has one of
 * every kind, and all of them in test/long/emulated.test.ts.
 */
export function triedOn(device: string, checkpoints: readonly string[]): string[] {
  return checkpoints.filter((path) => triesAll(device) || /\b(gqa|huginn|hrm_text|nanbeige|two_registers)$/.test(path))
}

/** Whether a device is tried with everything. */
export const triesAll = (device: string): boolean => device !== 'cuda-emulated' || process.env.LOOPLM_EMULATED === 'all'

/** So many first steps of a golden run: all, but three on the emulator (the parameters have changed twice by then). */
export const stepsOn = (device: string, losses: ArrayLike<number>): number[] =>
  Array.from(losses).slice(0, triesAll(device) ? losses.length : 3)

/** What stands in for cuBLASLt, to be named by LOOPLM_CUBLASLT. */
export const cublasLtDouble = join(build, 'Release', 'looplm_cublaslt_double.so')

/** The kernel tests on `cuda-emulated`, and how the device describes itself after them. */
export async function emulatedKernelTests(args: string[], env?: NodeJS.ProcessEnv): Promise<Outcome & { description: string }> {
  const outcome = await runTests('looplm_kernel_tests', ['--backend', emulatedLibrary, ...args], env)
  const lines = `${outcome.stdout}${outcome.stderr}`.split('\n')
  return { ...outcome, description: lines.filter((l) => l.startsWith('# ')).join('\n') }
}
