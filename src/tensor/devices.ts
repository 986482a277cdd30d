import { LoopLMError, toLoopLMError } from '../errors.js'
import { context, native } from '../native.js'
import { localRank } from '../parallel.js'
import { describe } from '../validation/arguments.js'
import type { DeviceName } from './types.js'

const names: readonly DeviceName[] = ['cpu', 'reference', 'cuda', 'auto']
let chosen: DeviceName | undefined // the device that 'auto' chooses

/** One entry of {@link devices}. */
export interface DeviceStatus {
  /** The value for the `device` option. */
  name: string
  /** Whether it can be used on this machine. */
  available: boolean
  /** Instruction set and threads, or why the device cannot be used. */
  description: string
}

/**
 * Lists the devices of this build, and whether they work on this machine.
 *
 * @throws LoopLMError NATIVE_LOAD if the engine cannot be loaded
 *
 * @example
 * ```ts
 * for (const { name, available, description } of devices()) console.log(name, available, description)
 * ```
 */
export function devices(): DeviceStatus[] {
  return listDevices(false)
}

/**
 * Implements {@link devices}. `opened`: open CUDA devices, so that their description includes the library for matrix products.
 */
export function listDevices(opened: boolean): DeviceStatus[] {
  const binding = native()
  try {
    return binding.devices(opened)
  } catch (error) {
    throw toLoopLMError(error, 'devices')
  }
}

/** What {@link memory} returns. */
export interface MemoryStatistics {
  /** Bytes of device memory in use, over all devices of the process. */
  bytes: number
  /** The most bytes in use since the start or {@link resetPeakMemory}. */
  peak: number
  /** Number of buffers in use. */
  buffers: number
}

/**
 * Returns the memory that tensors, models and optimizers hold. The garbage collector does not see it; `dispose()` frees it.
 *
 * @example
 * ```ts
 * const before = memory().bytes
 * tensor([1, 2, 3]).dispose()
 * memory().bytes === before // true
 * ```
 */
export function memory(): MemoryStatistics {
  return native().memory()
}

/** What {@link deviceMemory} returns. */
export interface DeviceMemory {
  /** Bytes that can still be allocated. For devices in the host's memory, limits of the container and of `ulimit` apply too. */
  free: number
  /** Total bytes. */
  total: number
}

/**
 * Returns the memory of a device: the GPU's own, or the host's for `cpu` and `reference`. Limits of containers (control groups)
 * and of the process apply.
 *
 * @param device as the `device` option; defaults to `cpu`
 * @throws LoopLMError INVALID_ARGUMENT for an unknown device, UNSUPPORTED for one that cannot be opened
 *
 * @example
 * ```ts
 * const { free, total } = deviceMemory('auto')
 * console.log(`${free} of ${total} bytes are free`)
 * ```
 */
export function deviceMemory(device?: DeviceName): DeviceMemory {
  const operation = 'deviceMemory'
  const name = checkDevice(device, operation)
  const inHost = name === 'cpu' || name === 'reference'
  try {
    return native().deviceMemory(inHost ? undefined : context(name, 0, operation))
  } catch (error) {
    throw toLoopLMError(error, operation)
  }
}

/**
 * Resets the peak of {@link memory} to the current use.
 *
 * @example
 * ```ts
 * resetPeakMemory()
 * await model.score(sequences)
 * console.log(memory().peak)
 * ```
 */
export function resetPeakMemory(): void {
  native().resetPeakMemory()
}

/** The `cuda` device of one of several processes on a machine: a separate GPU for each, if there are enough. */
export function ownGpu(rank: number, list: () => readonly Pick<DeviceStatus, 'name' | 'available'>[]): DeviceName {
  if (rank === 0) return 'cuda'
  const gpus = list().filter(({ name, available }) => available && /^cuda(:\d+)?$/.test(name))
  return (gpus[rank % Math.max(1, gpus.length)]?.name ?? 'cuda') as DeviceName
}

/**
 * Checks the device option and resolves `auto`.
 * @throws LoopLMError INVALID_ARGUMENT listing the known devices
 */
export function checkDevice(device: unknown, operation: string): DeviceName {
  if (device === 'auto') {
    chosen ??= devices().some(({ name, available }) => name === 'cuda' && available) ? 'cuda' : 'cpu'
    return chosen === 'cuda' ? checkDevice('cuda', operation) : chosen
  }
  if (device === 'cuda') return ownGpu(localRank(), () => devices())
  const name = names.find((known) => known === (device ?? 'cpu'))
  if (name !== undefined) return name
  // cuda-emulated runs the CUDA kernels on the CPU, in this project's own tests
  if (typeof device === 'string' && /^cuda(:\d{1,4}|-emulated)$/.test(device)) return device as DeviceName
  const known = names.map((word) => `'${word}'`).join(', ')
  throw new LoopLMError('INVALID_ARGUMENT', `device must be one of ${known}, 'cuda:1' …, got ${describe(device)}`, {
    operation,
  })
}
