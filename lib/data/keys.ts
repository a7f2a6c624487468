import { hash } from "node:crypto";

const LEAST = 1024;
const WORDS = 3; // of a slot: two of the key, and one more than its number, 0 where there is none

/**
 * Numbers by key, in 16 to 32 bytes a key: of a key are kept 64 bits of its SHA-256, not the text.
 */
export class Keys {
  /** Different keys there are. */
  size = 0;
  private slots = new Uint32Array(WORDS * LEAST);

  /** The number of the key: the one that it was first given. */
  number(key: string, otherwise: number): number {
    if (4 * this.size >= this.slots.length) this.grow(); // at most three quarters are taken
    const digest = hash("sha256", key, "buffer");
    const [high, low] = [digest.readUInt32LE(0), digest.readUInt32LE(4)];
    const slot = this.find(high, low);
    if (this.slots[slot + 2] === 0) {
      this.slots.set([high, low, otherwise + 1], slot);
      this.size++;
    }
    return this.slots[slot + 2] - 1;
  }

  /** Where the key is, or would be. */
  private find(high: number, low: number): number {
    const { slots } = this;
    let slot = WORDS * (high % (slots.length / WORDS));
    while (slots[slot + 2] !== 0 && (slots[slot] !== high || slots[slot + 1] !== low))
      slot = (slot + WORDS) % slots.length;
    return slot;
  }

  private grow(): void {
    const before = this.slots;
    this.slots = new Uint32Array(2 * before.length);
    for (let at = 0; at < before.length; at += WORDS) {
      if (before[at + 2] === 0) continue;
      const slot = this.find(before[at], before[at + 1]);
      for (let word = 0; word < WORDS; word++) this.slots[slot + word] = before[at + word];
    }
  }
}
