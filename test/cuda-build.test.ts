// nvcc compiles every kernel for every chip without a warning, none of them spills, and the library loads where there is no driver.
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'

const root = join(import.meta.dirname, '..')
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

  it('shows one symbol and needs nothing but the C library', () => {
    const library = join(root, 'build', 'Release', 'looplm_cuda.so')
    const said = (...args: string[]) => spawnSync('readelf', [...args, '-W', library], { encoding: 'utf8' }).stdout
    const exported = [...said('--dyn-syms').matchAll(/(?:GLOBAL|WEAK|UNIQUE) +DEFAULT +\d+ (\S+)/g)].map((match) => match[1])
    expect(exported).toEqual(['looplm_cuda_backend'])
    const needed = [...said('-d').matchAll(/\(NEEDED\).*\[(.*)\]/g)].map((match) => match[1]!)
    expect(needed.filter((name) => !/^(lib(c|m|pthread|dl|rt)\.so\.\d+|ld-.*)$/.test(name))).toEqual([])
  })
})
