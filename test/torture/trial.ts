import { Random } from "../random.js";
import { Disk, numbered, type Call, type Loss } from "./disk.js";
import { command, differences, fresh, left, type Stage } from "./stages.js";
import { rlhf, type Ended, type Harm } from "./victim.js";

// A trial: harm is done to a run, then the user does what users do, and the same bits must be there.

/** What is done, and to which calls. */
export const modes = {
  kill: { what: "killed before the call", on: () => true },
  tear: { what: "killed amid the write", on: ({ kind }: Call) => kind === "write" },
  EIO: { what: "the call fails by EIO", on: () => true },
  EACCES: {
    what: "the call fails by EACCES",
    on: ({ kind }: Call) => ["open", "rename", "unlink", "mkdir", "rmdir"].includes(kind),
  },
  ENOSPC: {
    what: "the disk is full from the call on",
    on: ({ kind }: Call) => ["open", "write", "mkdir"].includes(kind),
  },
  "power loss": { what: "all that was not synced is lost", on: () => true },
  "contents lost": { what: "names survive, contents that were not synced are lost", on: () => true },
  "some lost": { what: "of what was not synced a random half is lost", on: () => true },
} as const;
export type Mode = keyof typeof modes;

const LOSSES: Partial<Record<Mode, Loss>> = { "power loss": "all", "contents lost": "contents", "some lost": "some" };

/** A stage as it ends undisturbed. */
export interface Reference {
  stage: Stage;
  inputs: string;
  calls: Call[];
  seconds: number;
  left: Map<string, string>;
}

export interface Place {
  shim: string;
  sandbox: string;
}

export class Fault extends Error {}

/** Runs a stage undisturbed. */
export async function reference(stage: Stage, inputs: string, place: Place): Promise<Reference> {
  await fresh(stage, place.sandbox);
  const { code, said, calls, seconds } = await rlhf(command(stage, inputs, place.sandbox), {
    ...place,
    input: stage.input,
  });
  if (code !== 0) throw new Error(`${stage.name} does not run: ${said}`);
  return { stage, inputs, calls: numbered(calls), seconds, left: await left(place.sandbox) };
}

/** The numbers of the calls that a mode is for. */
export const callsFor = ({ calls }: Reference, mode: Mode): number[] =>
  calls.flatMap((call, i) => (modes[mode].on(call) ? [i + 1] : []));

const isRefusal = ({ code, said }: Ended) => code === 1 && said.includes("go on with --resume");

/**
 * Runs it to its end, as a user goes on: again, with `--resume` if it has that; now and then
 * without, which may be refused.
 */
async function goOn({ stage, inputs, left: wanted }: Reference, place: Place, random: Random): Promise<void> {
  const [args, how] = [command(stage, inputs, place.sandbox), { ...place, input: stage.input }];
  let ended = stage.resumes && random.below(4) > 0 ? undefined : await rlhf(args, how);
  if (!ended || (stage.resumes && isRefusal(ended))) ended = await rlhf([...args, "--resume"], how);
  if (ended.code !== 0) throw new Fault(`does not go on: ${ended.signal ?? ended.code}: ${ended.said.slice(-1000)}`);
  const differ = differences(await left(place.sandbox), wanted);
  if (differ.length > 0) throw new Fault(differ.join("; "));
}

/** One call of a stage is harmed, then the stage is gone on with. @throws Fault */
export async function harmed(known: Reference, mode: Mode, at: number, place: Place, random: Random): Promise<void> {
  const { stage, inputs } = known;
  await fresh(stage, place.sandbox);
  const [args, how] = [command(stage, inputs, place.sandbox), { ...place, input: stage.input }];
  const loss = LOSSES[mode];
  if (loss) {
    const disk = await Disk.load(place.sandbox);
    const { calls } = await rlhf(args, { ...how, harm: { does: "kill", at }, withData: true });
    disk.replay(calls);
    await disk.lose(place.sandbox, loss, random);
  } else {
    const ended = await rlhf(args, { ...how, harm: { does: mode as Harm["does"], at } });
    if (mode !== "kill" && mode !== "tear") holdToWords(ended, place.sandbox);
  }
  await goOn(known, place, random);
}

/** A command that met a failing call succeeds, or says in one line which file it could not write. */
function holdToWords({ code, signal, said }: Ended, sandbox: string): void {
  if (code === 0) return;
  const line = said.trim().split("\n").at(-1) ?? "";
  if (signal || code !== 1 || !line.startsWith("rlhf: ") || !line.includes(sandbox))
    throw new Fault(`ends by ${signal ?? code} and says: ${said.slice(-1000)}`);
}

/**
 * A run is killed again and again, at random calls and instants, and so is each process that goes
 * on with it, until one ends or there are `most` kills. After some of the kills the power is lost
 * too. In the end the run goes on undisturbed.
 * @returns the kills
 */
export async function hunted(known: Reference, most: number, place: Place, random: Random): Promise<number> {
  const { stage, inputs, calls, seconds } = known;
  const { sandbox } = place;
  await fresh(stage, sandbox);
  const args = command(stage, inputs, sandbox);
  let disk = await Disk.load(sandbox);
  let kills = 0;
  while (kills < most) {
    const timed = random.below(8) === 0;
    const how = timed
      ? { after: 1000 * seconds * random.uniform() }
      : { harm: { does: "kill" as const, at: 1 + Math.floor(calls.length * random.uniform() ** 3) } }; // early, so that most die
    const ended = await rlhf(stage.resumes && kills > 0 ? [...args, "--resume"] : args, {
      ...place,
      ...how,
      input: stage.input,
      withData: true,
    });
    if (ended.code === 0) break;
    if (ended.signal !== "SIGKILL")
      throw new Fault(`does not go on: ${ended.signal ?? ended.code}: ${ended.said.slice(-1000)}`);
    kills++;
    if (timed) disk = await Disk.load(sandbox); // the last call may not be in the log: what is there counts as synced
    else disk.replay(ended.calls);
    if (timed || random.below(4) > 0) continue;
    await disk.lose(sandbox, random.pick(["all", "contents", "some"]), random);
    disk = await Disk.load(sandbox);
  }
  await goOn(known, place, random);
  return kills;
}
