// nvcc compiles every kernel for every chip without a warning, and none of them spills. Kernels that must round alike do. The library loads
// where there is no driver.
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'

const root = join(import.meta.dirname, '..', '..')
const nvcc = process.env.NVCC ?? ['/usr/local/cuda/bin/nvcc', '/usr/local/bin/nvcc', '/usr/bin/nvcc'].find(existsSync)
if (nvcc === undefined) console.log('nvcc is not installed: the CUDA library is not compiled here')

interface Resources {
  file: string
  kernel: string
  arch: string
  registers: number
  stack: number
  spills: number
}

/** The lines of the kernels of a file as PTX, by name, compiled with or without leave to join products and sums. */
function entries(file: string, fmad: boolean, names: RegExp): Map<string, string[]> {
  const options = ['-std=c++20', '-O3', '--expt-relaxed-constexpr', '-arch=compute_90a', `-fmad=${fmad}`, '-ptx', '-o', '-']
  const { stdout, stderr, status } = spawnSync(nvcc!, [...options, join(root, 'cuda', `${file}.cu`)], {
    encoding: 'utf8',
    maxBuffer: 1 << 28,
  })
  if (status !== 0) throw new Error(stderr)
  const found = new Map<string, string[]>()
  for (const text of stdout.split('.entry ').slice(1)) {
    const [name, ...lines] = text.split('\n')
    // the hash of the anonymous namespace's name is that of the options too
    if (names.test(name!)) found.set(name!.replace(/_GLOBAL__N__[0-9a-f]{8}/, '').replace(/_cu_[0-9a-f]{8}/, ''), lines)
  }
  return found
}

const fused = (lines: string[]): number => lines.filter((line) => /\bfma\.rn\.f(32|64)/.test(line)).length

/** Sums of products that both leave their rounding open. */
function fusible(lines: string[]): string[] {
  const products = new Set(lines.flatMap((line) => /\bmul\.f(?:32|64)\s+(%\w+),/.exec(line)?.[1] ?? []))
  return lines.filter((line) => {
    const sum = /\b(?:add|sub)\.f(?:32|64)\s+%\w+, (%\w+|\S+), (%\w+|\S+);/.exec(line)
    return sum !== null && (products.has(sum[1]!) || products.has(sum[2]!))
  })
}

describe.skipIf(nvcc === undefined)('the CUDA library', () => {
  it('compiles for compute capability 8.0 and 9.0 and as PTX, and no kernel spills', { timeout: 1_800_000 }, () => {
    const { status, stdout, stderr } = spawnSync(process.execPath, [join(root, 'tools', 'build-cuda.mjs')], {
      encoding: 'utf8',
      env: { ...process.env, NVCC: nvcc },
    })
    expect(status, `${stdout}${stderr}`).toBe(0)
    const kernels = JSON.parse(readFileSync(join(root, 'build', 'cuda', 'resources.json'), 'utf8')) as Resources[]
    for (const arch of ['sm_80', 'sm_90a']) expect(kernels.filter((k) => k.arch === arch).length).toBeGreaterThan(100)
    expect(kernels.filter(({ spills, stack }) => spills + stack > 0)).toEqual([])
    expect(kernels.filter(({ registers }) => registers === 0)).toEqual([])
  })

  it('leaves no fma to the compiler in kernels that must round like others', { timeout: 1_200_000 }, () => {
    const files = { rope: /rope_kernel/, norm: /residual_norm_kernel/, swiglu: /swiglu_kernel/, exit: /11gate_kernel/ }
    const larger = {
      attention: /attention_kernel/,
      decode_attention: /decode_kernel|combine_kernel/,
      decode_token: /token_kernel/,
    }
    for (const [file, names] of Object.entries({ ...files, ...larger })) {
      const [free, fixed] = [true, false].map((fmad) => entries(file, fmad, names)) as [
        Map<string, string[]>,
        Map<string, string[]>,
      ]
      expect(free.size, file).toBeGreaterThan(1)
      for (const [name, lines] of free) {
        expect(fused(lines), name).toBe(fused(fixed.get(name)!)) // what the compiler's first half joined
        expect(fusible(lines), name).toEqual([]) // what ptxas might
      }
    }
  })

  it('exports one symbol and needs only the C library', () => {
    const library = join(root, 'build', 'Release', 'looplm_cuda.so')
    const said = (...args: string[]) => spawnSync('readelf', [...args, '-W', library], { encoding: 'utf8' }).stdout
    const exported = [...said('--dyn-syms').matchAll(/(?:GLOBAL|WEAK|UNIQUE) +DEFAULT +\d+ (\S+)/g)].map((match) => match[1])
    expect(exported).toEqual(['looplm_cuda_backend'])
    const needed = [...said('-d').matchAll(/\(NEEDED\).*\[(.*)\]/g)].map((match) => match[1]!)
    expect(needed.filter((name) => !/^(lib(c|m|pthread|dl|rt)\.so\.\d+|ld-.*)$/.test(name))).toEqual([])
  })
})
