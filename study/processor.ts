// Which processor a run has: its seconds are that processor's.
import { existsSync, readFileSync } from 'node:fs'
import { cpus } from 'node:os'

/** The processor's name; on Linux with its family and model, because virtual machines share names. */
export function processor(): string {
  const name = cpus()[0]?.model.trim() ?? process.arch
  if (!existsSync('/proc/cpuinfo')) return name
  const text = readFileSync('/proc/cpuinfo', 'utf8')
  const field = (key: string) => new RegExp(`^${key}\\s*: (.*)$`, 'm').exec(text)?.[1]
  const [family, model] = [field('cpu family'), field('model')]
  return family === undefined || model === undefined ? name : `${name}, family ${family}, model ${model}`
}
