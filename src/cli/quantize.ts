import { realpath } from 'node:fs/promises'
import { type Command, Option } from 'commander'
import { LoopLMError } from '../errors.js'
import { LoopLM } from '../model/model.js'
import { quantizationText } from '../model/quantization.js'
import { positiveInteger } from './arguments.js'
import { print } from './output.js'

interface QuantizeFlags {
  bits: '4' | '8'
  asymmetric?: boolean
  groupSize?: number
  threads?: number
}

/** Adds `looplm quantize`. */
export function addQuantize(program: Command): void {
  program
    .command('quantize')
    .description('write a copy of a checkpoint with matrices of 8 or 4 bits; only looplm loads it')
    .argument('<model>', 'checkpoint folder, GGUF file, or name of a downloaded model')
    .argument('<folder>', 'folder of the copy')
    .addOption(new Option('--bits <count>', 'bits per weight').choices(['4', '8']).makeOptionMandatory())
    .option('--asymmetric', 'with 4 bits, store a midpoint beside each scale; less error in the same memory')
    .option('--group-size <count>', 'weights that share a scale, a multiple of 32 (default: 64)', positiveInteger)
    .option('--threads <count>', 'threads of the device', positiveInteger)
    .action(quantize)
}

async function quantize(from: string, to: string, { bits, asymmetric, groupSize, threads }: QuantizeFlags): Promise<void> {
  const place = (folder: string) => realpath(folder).catch(() => undefined)
  const source = await place(from)
  if (source !== undefined && source === (await place(to))) {
    throw new LoopLMError(
      'INVALID_ARGUMENT',
      `looplm quantize: ${to} is the checkpoint itself and would be overwritten; choose another folder`,
    )
  }
  if (asymmetric && bits === '8')
    throw new LoopLMError('INVALID_ARGUMENT', 'looplm quantize: --asymmetric goes with --bits 4; omit it, or pass --bits 4')
  const options = threads === undefined ? {} : { threads }
  const quantize = asymmetric ? 'int4-asymmetric' : (`int${bits}` as const)
  using model = await LoopLM.fromPretrained(from, { ...options, quantize, groupSize })
  await model.save(to)
  print(`${to}: ${quantizationText(model.quantization!)}`)
}
