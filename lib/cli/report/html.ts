import { createHash } from "node:crypto";
import { visible } from "../../device/errors.js";

/** A piece of HTML. */
export class Html {
  constructor(readonly source: string) {}
}

type Inserted = string | number | Html | readonly Html[];

/**
 * HTML from a template. What is inserted is text, safe in elements and in quoted attributes, unless
 * it is HTML itself.
 */
export function markup(parts: TemplateStringsArray, ...inserted: readonly Inserted[]): Html {
  return new Html(parts.map((part, i) => part + (i < inserted.length ? sourceOf(inserted[i]) : "")).join(""));
}

function sourceOf(one: Inserted): string {
  if (one instanceof Html) return one.source;
  if (Array.isArray(one)) return one.map((piece) => sourceOf(piece as Html)).join("");
  return visible(String(one), { lines: true }).replace(/[&<>"']/g, (mark) => `&#${mark.charCodeAt(0)};`);
}

/** Data for a script of the page: no script itself, and nothing in it ends its element. */
export function jsonElement(id: string, value: unknown): Html {
  const text = visible(JSON.stringify(value)).replace(
    /[<>&]/g,
    (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
  return markup`<script type="application/json" id="${id}">${new Html(text)}</script>`;
}

/**
 * A page that is opened from a disk: it may run this script and have these styles, and load
 * nothing.
 */
export function pageOf({
  title,
  style,
  script,
  body,
}: {
  title: string;
  style: string;
  script: string;
  body: Html;
}): string {
  const hash = (text: string) => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;
  const policy = `default-src 'none'; style-src ${hash(style)}; script-src ${hash(script)}; base-uri 'none'; form-action 'none'`;
  return markup`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer">
<title>${title}</title>
<style>${new Html(style)}</style>
</head>
<body>
${body}
<script>${new Html(script)}</script>
</body>
</html>
`.source;
}
