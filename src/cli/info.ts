import { createRequire } from 'node:module'
import { availableParallelism } from 'node:os'
import type { Command } from 'commander'
import pc from 'picocolors'
import { findFolder, readCheckpoint } from '../model/checkpoint.js'
import { architectureOf } from '../model/config.js'
import { findGguf, readGgufModel } from '../model/gguf.js'
import { parameterCount } from '../native/architecture.js'
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
    .argument('[model]', 'also describe this model, without loading it: a checkpoint folder or a GGUF file')
    .option('--json', 'write one JSON object to standard output and nothing else')
    .action(async (path: string | undefined, { json }: { json?: boolean }) => {
      const model = path === undefined ? undefined : await modelFacts(path)
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
        if (json) printJson({ ...facts, devices, model })
        else printFacts({ ...facts, devices })
        if (!json && model !== undefined) printModel(model)
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

/** What the files of a model say of it. */
async function modelFacts(path: string) {
  const operation = 'looplm info'
  const folder = await findFolder(path, {}, operation)
  const file = await findGguf(folder, operation)
  const read = file === undefined ? await readCheckpoint(folder, operation) : await readGgufModel(file, operation)
  const { config, quantization, tokenizer } = read
  const architecture = architectureOf(config)
  return {
    path: file ?? folder,
    family: architecture.family,
    parameters: parameterCount(architecture),
    layers: architecture.layers,
    loops: architecture.loops,
    hiddenSize: architecture.hidden,
    vocabulary: architecture.vocabulary,
    positions: config.max_position_embeddings,
    exitGate: architecture.exitGate,
    tokenizer: tokenizer === undefined ? null : tokenizer.vocabSize,
    chatTemplate: tokenizer?.hasChatTemplate ?? false,
    quantization: quantization ?? null,
    types: 'types' in read ? Object.fromEntries(read.types) : null,
  }
}

function printModel(model: Awaited<ReturnType<typeof modelFacts>>): void {
  const { path, family, parameters, layers, loops, hiddenSize, vocabulary, positions, quantization, types } = model
  print(`${path}: ${family}, ${parameters} parameters`)
  print(`     ${layers} layers × ${loops} loops, hidden size ${hiddenSize}, ${vocabulary} token ids, ${positions} positions`)
  const tokenizer = model.tokenizer === null ? 'no tokenizer' : `tokenizer of ${model.tokenizer} ids`
  print(`     ${tokenizer}${model.chatTemplate ? ' with a chat template' : ''}; ${model.exitGate ? 'an' : 'no'} exit gate`)
  if (types !== null)
    print(
      `     matrices: ${Object.entries(types)
        .map(([type, count]) => `${count} × ${type}`)
        .join(', ')}`,
    )
  if (quantization === null) return
  const head = quantization.head === false ? '; the head keeps its plain values' : ''
  print(`     loads quantized: ${quantization.bits} bits, groups of ${quantization.groupSize}${head}`)
}
