// Reads server-sent events from a response: its own reader, since EventSource cannot show a key.

/** Calls `on(event, data)` for each event, until the stream ends. Errors if the connection breaks. */
export async function readEvents(response, on) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let event = "message";
  let data = [];
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (data.length > 0) on(event, data.join("\n"));
        event = "message";
        data = [];
      } else {
        const [, field, text] = /^([^:]*):? ?(.*)$/s.exec(line);
        if (field === "data") data.push(text);
        else if (field === "event") event = text;
      }
    }
  }
}
