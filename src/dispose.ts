/**
 * `Symbol.dispose` where the runtime lacks it: the realms of `node:vm`, and so of Jest, do not have what Node gives to its own.
 * Classes below define `[Symbol.dispose]`, and the `using` of compiled callers looks it up, so it is set once for the whole realm.
 */
if ((Symbol as { dispose?: symbol }).dispose === undefined) {
  Object.defineProperty(Symbol, 'dispose', { value: Symbol.for('Symbol.dispose'), configurable: true, writable: true })
}
