import { describe, expect, it } from 'vitest'
import { learningRateAt, type Schedule } from '../../src/rl/schedule.js'

const base: Schedule = { schedule: 'constant', learningRate: 1, minLearningRate: 0, steps: 10 }
const rates = (schedule: Partial<Schedule>, steps = 10) =>
  Array.from({ length: steps }, (_, step) => learningRateAt({ ...base, steps, ...schedule }, step))

describe('learning rate', () => {
  it('stays at the peak with schedule constant', () => {
    expect(rates({}, 3)).toEqual([1, 1, 1])
  })

  it('rises linearly in the warm-up and never starts at zero', () => {
    expect(rates({ warmupSteps: 4 }, 6)).toEqual([0.25, 0.5, 0.75, 1, 1, 1])
    expect(rates({ warmupRatio: 0.15 }).slice(0, 3)).toEqual([0.5, 1, 1]) // 1.5 steps are rounded up
  })

  it('falls evenly with schedule linear, to the minimum after the last step', () => {
    expect(rates({ schedule: 'linear' }, 4)).toEqual([1, 0.75, 0.5, 0.25])
    expect(learningRateAt({ ...base, schedule: 'linear', minLearningRate: 0.1 }, 10)).toBeCloseTo(0.1, 12)
    expect(learningRateAt({ ...base, schedule: 'linear', minLearningRate: 0.1 }, 1000)).toBeCloseTo(0.1, 12)
  })

  it('passes the middle at half height with schedule cosine', () => {
    const course = rates({ schedule: 'cosine', minLearningRate: 0.2 })
    expect(course[0]).toBe(1)
    expect(course[5]).toBeCloseTo(0.6, 12)
    for (let i = 1; i < course.length; i++) expect(course[i]!).toBeLessThan(course[i - 1]!)
  })

  it('reaches its peak once with warm-up', () => {
    const course = rates({ schedule: 'linear', warmupSteps: 3 }, 8)
    expect(course.filter((rate) => rate === 1)).toHaveLength(1)
    expect(course[2]).toBe(1)
  })

  it('supports a warm-up as long as the run', () => {
    expect(rates({ schedule: 'cosine', warmupRatio: 1 }, 4)).toEqual([0.25, 0.5, 0.75, 1])
  })
})
