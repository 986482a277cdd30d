// Memory that cannot be allocated, and calls that are aborted, at every single allocation and in every dtype.
import { beforeAll, expect, it } from 'vitest'
import { buildTargets, runTests } from '../native-tests.js'

beforeAll(() => buildTargets('looplm_fault_tests'), 900_000)

it('a call that fails or is aborted changes nothing and can be repeated', async () => {
  const { failures, passed, status } = await runTests('looplm_fault_tests', ['--every'])
  expect(failures).toEqual([])
  expect(passed).toBeGreaterThan(100)
  expect(status).toBe(0)
})
