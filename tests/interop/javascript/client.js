// OpenAI's own client for JavaScript against the server. A task a line: {base_url, api_key, model, image, does}.
import { createInterface } from "node:readline";
import OpenAI from "openai";

const question = [{ role: "user", content: "What is x402?" }];
const add = {
  type: "function",
  function: { name: "add", parameters: { type: "object", properties: { a: { type: "integer" } } } },
};
const person = {
  type: "json_schema",
  json_schema: {
    name: "person",
    strict: true,
    schema: {
      type: "object",
      properties: { age: { type: "integer" } },
      required: ["age"],
      additionalProperties: false,
    },
  },
};

const does = {
  async chat(client, { model }) {
    const { data, response } = await client.chat.completions.create({ model, messages: question }).withResponse();
    return {
      text: data.choices[0].message.content,
      receipt: data.opengradient.call_id,
      header: response.headers.get("x-opengradient-receipt"),
    };
  },
  async stream(client, { model }) {
    let text = "", receipt;
    for await (const event of await client.chat.completions.create({ model, messages: question, stream: true })) {
      text += event.choices[0].delta.content ?? "";
      receipt = event.opengradient?.call_id ?? receipt;
    }
    return { text, receipt };
  },
  async tools(client, { model }) {
    const messages = [{ role: "user", content: "Use add on 2." }];
    const answer = await client.chat.completions.create({ model, messages, tools: [add], tool_choice: "required" });
    return answer.choices[0].message.tool_calls[0].function.name;
  },
  async structured(client, { model }) {
    const answer = await client.chat.completions.parse({ model, messages: question, response_format: person });
    return Object.keys(answer.choices[0].message.parsed);
  },
  async image(client, { model, image }) {
    const content = [{ type: "text", text: "Describe it." }, { type: "image_url", image_url: { url: image } }];
    const answer = await client.chat.completions.create({ model, messages: [{ role: "user", content }] });
    return answer.choices[0].message.content;
  },
  async cancelled(client, { model }) {
    const events = await client.chat.completions.create({ model, messages: question, stream: true });
    for await (const _ of events) break;
    return true;
  },
  async failure(client, { model }) {
    try {
      await client.chat.completions.create({ model, messages: question });
    } catch (problem) {
      return { status: problem.status, code: problem.code };
    }
  },
  async timed_out(client, { model }) {
    const answer = await client.chat.completions.create({ model, messages: question }, { timeout: 700 });
    return answer.opengradient.call_id;
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const task = JSON.parse(line);
  const client = new OpenAI({ baseURL: task.base_url, apiKey: task.api_key });
  console.log(JSON.stringify(await does[task.does](client, task)));
}
