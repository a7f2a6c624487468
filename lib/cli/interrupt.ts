/** What ends a run that was asked to stop: it has saved what it can. */
export class Interrupted extends Error {
  readonly code = "INTERRUPTED";
  constructor(
    readonly signal: NodeJS.Signals,
    message: string,
  ) {
    super(message);
  }
}

const SIGNALS = ["SIGINT", "SIGTERM"] as const;

/** Ctrl-C and SIGTERM: the first asks the run to finish its step and save; a second one finds no handler and ends the process at once. */
export class Interrupt {
  asked: NodeJS.Signals | undefined;
  private readonly handler = (signal: NodeJS.Signals) => {
    this.asked = signal;
    this[Symbol.dispose]();
    process.stderr.write(`\n${signal}: this step is finished and saved, then the run stops; once more stops it at once\n`);
  };

  constructor() {
    for (const signal of SIGNALS) process.on(signal, this.handler);
  }

  /** @throws Interrupted if the run was asked to stop; `saved` says what is kept */
  check(saved: string): void {
    if (this.asked) throw new Interrupted(this.asked, `stopped by ${this.asked}; ${saved}`);
  }

  [Symbol.dispose](): void {
    for (const signal of SIGNALS) process.off(signal, this.handler);
  }
}
