// Every trainer under a launcher: the run of one process, shared out.
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { LoopLM } from '../../src/model/model.js'
import { addition } from '../../src/tasks/addition.js'
import { installed, launch } from '../mpi.js'
import { timeless } from '../timeless.js'
import { distance, type Found, runRanks } from '../trainer-ranks.js'

const cli = join(import.meta.dirname, '..', '..', 'dist', 'src', 'cli', 'main.js')
const scenarios = ['pretrain', 'lora', 'looprpt', 'objective']
const metricsOf = ({ events }: Found) => events.map(({ metrics, ...event }) => ({ ...event, metrics: timeless(metrics) }))

describe.runIf(installed.length > 0)('trainers under a launcher', () => {
  it.each([
    ['reference', 1e-12],
    ['cpu', 1e-5],
  ] as const)('train on %s as one process does: tokens, metrics, parameters', async (device, bound) => {
    const env = { LOOPLM_DEVICE: device, LOOPLM_STEPS: device === 'cpu' ? '10' : '3' }
    const alone = await runRanks(undefined, 1, scenarios, env)
    const together = await runRanks(installed.at(device === 'cpu' ? 0 : -1)!, device === 'cpu' ? 3 : 2, scenarios, env)
    const nothing = alone('pretrain')[0]!.first
    for (const name of scenarios) {
      const [one] = alone(name)
      const ranks = together(name)
      expect(one!.first === nothing, name).toBe(['pretrain', 'looprpt'].includes(name)) // these have no rollouts
      expect(ranks[0]!.events.length, name).toBe(one!.events.length)
      for (const rank of ranks) {
        expect(rank.first, name).toBe(one!.first) // the first rollouts, bit for bit
        expect(rank.hash, name).toBe(ranks[0]!.hash)
        expect(metricsOf(rank), name).toEqual(metricsOf(ranks[0]!))
      }
      expect(distance(ranks[0]!.values, one!.values), name).toBeLessThan(bound)
      for (const [i, { type, step, metrics }] of one!.events.entries()) {
        const other = ranks[0]!.events[i]!
        expect([other.type, other.step], name).toEqual([type, step])
        for (const [metric, value] of Object.entries(metrics))
          if (!/time|per_second|memory/.test(metric)) expect(other.metrics[metric], `${name} ${metric}`).toBeCloseTo(value, 4)
      }
    }
  })

  it('throw the error of one process in all of them, and can continue', async () => {
    const mistakes = {
      reward: ['INVALID_ARGUMENT', /^(rollouts: rank 1: )?reward reward must return a finite number or null, got 'much'/],
      objective: ['INVALID_ARGUMENT', /^step 1: (loss: rank 1: )?objective: coefficients must be an array/],
      options: ['PARALLEL', /seed is '0' on rank 0 and '1' on rank 1/],
      data: ['PARALLEL', /data is '\w+' on rank 0 and '\w+' on rank 1/],
      model: ['PARALLEL', /parameters is '\w+' on rank 0 and '\w+' on rank 1/],
      folder: ['INVALID_FILE', /^(lock: rank 0: )?run: cannot write \/dev\/null\/run/],
    } as const
    const names = Object.keys(mistakes).map((name) => `fail:${name}`)
    const found = await runRanks(installed[0]!, 2, names)
    for (const [name, [code, message]] of Object.entries(mistakes))
      for (const rank of found(`fail:${name}`)) {
        expect(rank.message, name).toMatch(message)
        expect(rank.code, name).toBe(code)
      }
  })

  it('share out eval and generate on the command line, with the output of one process', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'looplm-shared-'))
    const { tokenizer } = addition({ digits: 1 })
    const sizes = { hidden_size: 16, intermediate_size: 24, num_hidden_layers: 1, num_attention_heads: 2, total_ut_steps: 2 }
    const model = await LoopLM.create({ ...sizes, vocab_size: tokenizer.vocabSize }, { seed: 1 })
    model.tokenizer = tokenizer
    await model.save(join(folder, 'model'))
    model.dispose()
    writeFileSync(join(folder, 'prompts.txt'), '1+1=\n2+3=\n4+4=\n')
    const commands = [
      [
        'eval',
        join(folder, 'model'),
        '--task',
        'addition',
        '--problems',
        '5',
        '--samples',
        '2',
        '--max-new-tokens',
        '3',
        '--json',
      ],
      [
        'generate',
        join(folder, 'model'),
        '--prompts',
        join(folder, 'prompts.txt'),
        '--max-new-tokens',
        '4',
        '--seed',
        '5',
        '--json',
      ],
    ]
    for (const words of commands) {
      const args = [cli, ...words, '--threads', '1']
      const alone = execFileSync(process.execPath, args, { encoding: 'utf8' })
      const { status, stdout, stderr } = await launch(installed[0]!, 2, process.execPath, args)
      expect(status, stderr).toBe(0)
      expect(stdout).toBe(alone)
    }
    rmSync(folder, { recursive: true })
  })
})
