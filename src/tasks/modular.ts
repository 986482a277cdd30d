/** The operations of arithmetic modulo a number. */
export const operators = ['+', '-', '*'] as const

/** `left operator right`; operands and result are natural numbers below the modulus. */
export function apply(operator: (typeof operators)[number], left: number, right: number, modulus: number): number {
  switch (operator) {
    case '+':
      return (left + right) % modulus
    case '-':
      return (left - right + modulus) % modulus
    case '*':
      return (left * right) % modulus
  }
}
