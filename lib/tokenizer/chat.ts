import { brief, typeError } from "../device/errors.js";
import { Template } from "./template.js";

/** A turn of a conversation. */
export interface Message {
  /** Who speaks, by the template's names: `system`, `user`, `assistant`. */
  role: string;
  /** What is said. */
  content: string;
}

/** A model's chat template: Jinja, with the names that transformers gives it. */
export class ChatTemplate {
  private readonly template: Template;

  /**
   * @param tokens bos_token, eos_token and their like, as the template spells them
   * @throws TypeError `CHAT` for what is no template
   */
  constructor(
    source: string,
    private readonly tokens: Record<string, string>,
    private readonly name: string,
  ) {
    try {
      this.template = new Template(source);
    } catch (error) {
      throw typeError("CHAT", `${name}: the chat template cannot be read: ${brief((error as Error).message)}`);
    }
  }

  /**
   * The text of a conversation.
   * @param open ends where the assistant goes on: after what opens its turn or, if the last turn is
   *   its own, after that turn's content
   * @throws TypeError `CHAT` if the template refuses the conversation, or takes more memory or time
   *   than one may. The limit is counted in steps and characters. It grows with the conversations,
   *   and all that are rendered by this template share it.
   */
  render(messages: readonly Message[], { open = false } = {}): string {
    const last = messages.at(-1);
    const continued = open && last?.role === "assistant";
    let text: string;
    try {
      text = this.template.render(messages, { ...this.tokens, add_generation_prompt: open && !continued });
    } catch (error) {
      const roles = messages.map(({ role }) => role).join(", ") || "no messages";
      throw typeError(
        "CHAT",
        `${this.name}: the chat template refuses ${brief(roles)}: ${brief((error as Error).message)}`,
      );
    }
    if (!continued) return text;
    const start = text.lastIndexOf(last.content.trim());
    const kept = last.content.trimStart(); // unless the template trims what follows too
    return text.slice(0, start + (text.startsWith(kept, start) ? kept : last.content.trim()).length);
  }
}

const TOKENS = ["bos_token", "eos_token", "pad_token", "unk_token"];

/** The template of a tokenizer_config.json: one, or the one of several that is called "default". */
export function chatTemplate(config: Record<string, unknown>, name: string): ChatTemplate | undefined {
  const given = config.chat_template;
  const source = Array.isArray(given)
    ? (given as { name?: unknown; template?: unknown }[]).find((one) => one?.name === "default")?.template
    : given;
  if (source === undefined || source === null) return undefined;
  if (typeof source !== "string")
    throw typeError(
      "CHAT",
      `${name}: chat_template is ${typeof source}, wanted a string, or a list with one named "default"`,
    );
  const spelled = TOKENS.flatMap((key) => {
    const token = config[key];
    const content = typeof token === "object" && token !== null ? (token as { content?: unknown }).content : token;
    return typeof content === "string" ? [[key, content]] : [];
  });
  return new ChatTemplate(source, Object.fromEntries(spelled) as Record<string, string>, name);
}
