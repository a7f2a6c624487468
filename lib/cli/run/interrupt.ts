import { warn } from "../terminal.js";

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

/**
 * Ctrl-C and SIGTERM: the first asks the run to finish its step and save; a second one finds no
 * handler and ends the process at once.
 */
export class Interrupt {
  asked: NodeJS.Signals | undefined;
  private readonly handler = (signal: NodeJS.Signals) => {
    this.asked = signal;
    this[Symbol.dispose]();
    warn(
      `\n${signal}: this step is finished and saved, then the run stops; once more stops it at once, and --resume goes on from the last checkpoint`,
    );
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

/**
 * Ctrl-C, SIGTERM and a terminal that closes: the first asks a command to end. The second says what
 * is still done; the third ends the process at once.
 */
export class Ending {
  private readonly controller = new AbortController();
  private readonly signals = [...SIGNALS, "SIGHUP"] as const;
  private readonly handler = (signal: NodeJS.Signals) => {
    if (!this.controller.signal.aborted) return this.controller.abort();
    this[Symbol.dispose]();
    warn(`\n${signal}: ${this.later}. Once more ends at once`);
  };

  /** @param later what the second signal says */
  constructor(private readonly later: string) {
    for (const signal of this.signals) process.on(signal, this.handler);
  }

  /** Aborts when the command is asked to end. */
  get asked(): AbortSignal {
    return this.controller.signal;
  }

  [Symbol.dispose](): void {
    for (const signal of this.signals) process.off(signal, this.handler);
  }
}
