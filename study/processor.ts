// The CPU of a run, because its seconds are only valid for that CPU.
import { existsSync, readFileSync } from 'node:fs'
import { cpus } from 'node:os'

/** The CPU's name. On Linux with its family and model, because virtual machines share names. */
export function processor(): string {
  const name = cpus()[0]?.model.trim() ?? process.arch
  if (!existsSync('/proc/cpuinfo')) return name
  const text = readFileSync('/proc/cpuinfo', 'utf8')
  const field = (key: string) => new RegExp(`^${key}\\s*: (.*)$`, 'm').exec(text)?.[1]
  const [family, model] = [field('cpu family'), field('model')]
  return family === undefined || model === undefined ? name : `${name}, family ${family}, model ${model}`
}
