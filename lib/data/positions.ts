const WORD = 5; // 32 bits

/**
 * A set of positions, in which the first from a place on is found in few steps: a bit each, and
 * above every 32 bits one that says whether any is set.
 */
export class Positions {
  private readonly levels: Uint32Array[] = [];

  /** @param size positions are below it @param source the set to begin with, else it is empty */
  constructor(size: number, source?: Positions) {
    if (source) this.levels = source.levels.map((level) => level.slice());
    else
      for (let bits = Math.max(1, size); ; bits = this.levels.at(-1)!.length) {
        this.levels.push(new Uint32Array((bits + 31) >>> WORD));
        if (bits <= 32) break;
      }
  }

  add(position: number): void {
    let at = position;
    for (const level of this.levels) {
      level[at >>> WORD] |= 1 << (at & 31);
      at >>>= WORD;
    }
  }

  delete(position: number): void {
    let at = position;
    for (const level of this.levels) {
      level[at >>> WORD] &= ~(1 << (at & 31));
      at >>>= WORD;
      if (level[at] !== 0) return;
    }
  }

  has(position: number): boolean {
    return ((this.levels[0][position >>> WORD] >>> (position & 31)) & 1) === 1;
  }

  /** The first position from this one on; undefined if there is none. */
  first(from = 0): number | undefined {
    let at = from;
    for (let height = 0; height < this.levels.length; height++) {
      const words = this.levels[height];
      const word = at >>> WORD;
      if (word >= words.length) return undefined;
      const rest = words[word] & (~0 << (at & 31));
      if (rest !== 0) {
        at = word * 32 + lowest(rest);
        while (--height >= 0) at = at * 32 + lowest(this.levels[height][at]);
        return at;
      }
      at = word + 1;
    }
    return undefined;
  }
}

const lowest = (word: number) => 31 - Math.clz32(word & -word);
