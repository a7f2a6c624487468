/**
 * Memory and time for what others wrote, in units of about a byte that is made or a nanosecond that
 * is spent. It is counted, not measured, so a busy machine stops nothing that an idle one does. One
 * budget serves all of a file's work: each piece brings what honest work of its size may take, and
 * only a reserve is kept beyond that.
 */
export class Budget {
  private left: number;

  constructor(private readonly reserve: number) {
    this.left = reserve;
  }

  /**
   * Begins a piece of work.
   * @param share units that the piece brings
   * @param most units beyond the reserve that it may take itself, which bounds its memory
   */
  begin(share: number, most: number): void {
    this.left = Math.min(this.left + share, this.reserve + most);
  }

  /** @throws Error where it has no such units left */
  spend(units: number): void {
    if (!((this.left -= units) >= 0)) {
      this.left = 0;
      throw new Error("it takes more memory or time than a template may");
    }
  }
}
