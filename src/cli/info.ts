import { createRequire } from 'node:module'
import { availableParallelism } from 'node:os'
import type { Command } from 'commander'
import pc from 'picocolors'
import { libc } from '../native.js'
import { type DeviceStatus, listDevices } from '../tensor/devices.js'
import { print, printJson } from './output.js'

/** The version of this package. */
export function version(): string {
  return (createRequire(import.meta.url)('looplm/package.json') as { version: string }).version
}

/** Adds `looplm info`. */
export function addInfo(program: Command): void {
  program
    .command('info')
    .description('what works on this machine: devices, instruction sets, threads, versions, and why CUDA is or is not used')
    .option('--json', 'write one JSON object to standard output and nothing else')
    .action(({ json }: { json?: boolean }) => {
      const facts = {
        looplm: version(),
        node: process.version,
        platform: `${process.platform}-${process.arch}`,
        libc: libc(),
        cores: availableParallelism(),
      }
      let devices: DeviceStatus[] = []
      try {
        devices = listDevices(true)
      } finally {
        // without an engine too: the error follows
        if (json) printJson({ ...facts, devices })
        else printFacts({ ...facts, devices })
      }
    })
}

function printFacts(facts: {
  looplm: string
  node: string
  platform: string
  libc: string | undefined
  cores: number
  devices: DeviceStatus[]
}): void {
  print(
    `looplm ${facts.looplm}, Node ${facts.node}, ${facts.platform}${facts.libc === undefined ? '' : ` (${facts.libc})`}, ${facts.cores} cores`,
  )
  for (const { name, available, description } of facts.devices) {
    print(`${available ? pc.green('yes') : pc.yellow('no ')}  ${name.padEnd(10)} ${description}`)
  }
}
