import { availableParallelism } from 'node:os'
import type { Command } from 'commander'
import pc from 'picocolors'
import { architectureOf } from '../model/config.js'
import { quantizationText } from '../model/quantization.js'
import { parameterCount } from '../native/architecture.js'
import { libc } from '../native.js'
import { packageVersion } from '../package-root.js'
import { chooseLibrary, detectLauncher, type ParallelLibrary, parallelLibraries } from '../parallel.js'
import { type DeviceStatus, listDevices } from '../tensor/devices.js'
import { readModelFiles } from './model-files.js'
import { print, printJson } from './output.js'

/** Adds `looplm info`. */
export function addInfo(program: Command): void {
  program
    .command('info')
    .description(
      'show what works on this machine: devices, instruction sets, threads, versions, MPI, and why CUDA is or is not used',
    )
    .argument(
      '[model]',
      'also describe a model without loading it: a checkpoint folder, GGUF file, or name of a downloaded model',
    )
    .option('--json', 'write one JSON object to standard output and nothing else')
    .action(async (path: string | undefined, { json }: { json?: boolean }) => {
      const model = path === undefined ? undefined : await modelFacts(path)
      const facts = {
        looplm: packageVersion(),
        node: process.version,
        platform: `${process.platform}-${process.arch}`,
        libc: libc(),
        cores: availableParallelism(),
      }
      let devices: DeviceStatus[] = []
      let parallel: Parallel = { libraries: [] }
      try {
        devices = listDevices(true)
        parallel = findParallel()
      } finally {
        // print this even without an engine; its error follows
        if (json) printJson({ ...facts, devices, parallel, model })
        else printFacts({ ...facts, devices, parallel })
        if (!json && model !== undefined) printModel(model)
      }
    })
}

interface Parallel {
  libraries: ParallelLibrary[]
  /** The launcher that started this process together with others. */
  launcher?: string
  /** The library that `parallel.init` would use. */
  used?: string | undefined
}

function findParallel(): Parallel {
  const libraries = parallelLibraries()
  const launcher = detectLauncher(process.env)
  return launcher === undefined
    ? { libraries }
    : { libraries, launcher: launcher.name, used: launcher.size === 1 ? undefined : chooseLibrary(launcher, libraries) }
}

function printFacts(facts: {
  looplm: string
  node: string
  platform: string
  libc: string | undefined
  cores: number
  devices: DeviceStatus[]
  parallel: Parallel
}): void {
  print(
    `looplm ${facts.looplm}, Node ${facts.node}, ${facts.platform}${facts.libc === undefined ? '' : ` (${facts.libc})`}, ${facts.cores} cores`,
  )
  const { libraries, launcher, used } = facts.parallel
  for (const { name, available, description } of [...facts.devices, ...libraries]) {
    print(`${available ? pc.green('yes') : pc.yellow('no ')}  ${name.padEnd(10)} ${description}`)
  }
  if (libraries.length > 0)
    print(
      `many processes: ${launcher === undefined ? 'none, no launcher (mpirun, mpiexec, srun) started this one' : `${launcher}, ${used ?? 'alone'}`}`,
    )
}

/** The facts about a model in its files. */
async function modelFacts(path: string) {
  const operation = 'looplm info'
  const { config, quantization, tokenizer, types, path: found } = await readModelFiles(path, operation)
  const architecture = architectureOf(config)
  return {
    path: found,
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
    types: types === undefined ? null : Object.fromEntries(types),
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
  print(`     loads quantized: ${quantizationText(quantization)}${head}`)
}
