/* l4export.h - the C ABI of the native runtime: engines, tokenizers, sessions and images. C11 and C++17.
 *
 * Texts and paths are UTF-8, token ids are int32. Every call that can fail returns a status and changes nothing when it
 * fails; `l4_last_error` has the reason, one line. A GPU alone can be lost while a session's memory is written or put
 * back: the session then refuses all calls but `l4_session_reset`. No call throws, aborts, prints or keeps global
 * state, and nothing needs to be shut down.
 *
 * Handles are closed by their `_close` call; NULL is fine there. What was made of an engine or a tokenizer keeps what
 * it needs of it, so the order of closing does not matter.
 *
 * Threads: an engine, a tokenizer and images may be used by any number of threads. A session, a generation and a text
 * stream are for one caller at a time; a session that is in use refuses a second caller. `l4_session_cancel` may come
 * from any thread at any time.
 *
 * Structs begin with their size, which the caller sets to sizeof(the struct), so that later versions can add members at
 * the end. Of an array of structs every element has the size that the first one says. Initializers such as
 * L4_SAMPLING_DEFAULT set it, and defaults.
 *
 * A call that gives text or ids takes a buffer and its capacity and always says the whole count. Where it does not fit,
 * nothing is written to the buffer and the status is L4_OK: call again with that much room. A NULL buffer asks for the
 * count alone. Texts have no terminating zero unless it is said.
 */
#ifndef L4EXPORT_H
#define L4EXPORT_H

#include <stddef.h>
#include <stdint.h>

#if defined(_WIN32)
#define L4_API
#else
#define L4_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define L4_ABI_VERSION 1

/* Where they mean the same, these are the exit codes of the command line. */
typedef enum l4_status {
  L4_OK = 0,
  L4_VERIFICATION_FAILED = 1, /* a file is not the one that the manifest describes */
  L4_BAD_INPUT = 2,           /* an argument, an engine, a file, a prompt, a session in use */
  L4_ENVIRONMENT = 3,         /* ONNX Runtime, a provider or a driver is missing or too old */
  L4_STORAGE = 4,             /* reading or writing failed */
  L4_CANCELLED = 130,         /* `l4_session_cancel` ended the call */
  L4_INTERNAL = 70            /* a defect of this library; please report it */
} l4_status;

L4_API uint32_t l4_abi_version(void); /* L4_ABI_VERSION of the library */
L4_API const char* l4_version(void);  /* the library's version, such as "0.1.0" */

/* Why this thread's last call that did not return L4_OK failed: one line, good until the thread's next call. Never
 * NULL. */
L4_API const char* l4_last_error(void);

/* ---- Engines ----------------------------------------------------------------------------------------------------- */

typedef struct l4_engine l4_engine;

typedef struct l4_engine_options {
  size_t size;
  const char* onnxruntime; /* path of libonnxruntime; NULL: $L4EXPORT_ONNXRUNTIME, else the loader's own search */
  const char* provider;    /* "cpu" or "cuda"; NULL: the one that the engine was built for */
  int32_t threads;         /* of the CPU for one call; 0: one for each core that the process may use */
  int32_t verify;          /* not 0: the digest of every file is compared with the manifest first */
} l4_engine_options;

#define L4_ENGINE_OPTIONS_DEFAULT {sizeof(l4_engine_options), NULL, NULL, 0, 0}

typedef struct l4_engine_info {
  size_t size;
  int32_t vocab_size;           /* of the model: logits have so many elements */
  int64_t max_context;          /* positions that there are */
  int64_t prefill_cut;          /* calls are cut at multiples of this position; 0: anywhere */
  const char* kv_layout;        /* "static", "chunked" or "concat" */
  const char* provider;         /* what executes the decoder, as a report should name it */
  const char* onnxruntime;      /* version of the loaded library */
  const int32_t* eos_token_ids; /* tokens that end an answer */
  size_t eos_token_count;
  int32_t sees_images;          /* whether there is a vision tower */
  int32_t threads;              /* of the CPU that one call uses; 0 where a GPU computes */
} l4_engine_info;

/* Open an engine directory. `options` may be NULL.
 *
 * L4_BAD_INPUT: not an engine, one that is damaged, contradicts itself, or needs what this library does not know;
 * L4_ENVIRONMENT: no ONNX Runtime, one that is older than the graph needs, or a provider that is not there;
 * L4_VERIFICATION_FAILED: with `verify`, a file that is missing or another one. */
L4_API l4_status l4_engine_open(const char* directory, const l4_engine_options* options, l4_engine** out);
L4_API void l4_engine_close(l4_engine* engine);

/* manifest.json as it was read, zero-terminated; lives as long as the engine. */
L4_API const char* l4_engine_manifest(const l4_engine* engine);

/* Fill `info` as far as `info->size` reaches; what it points to lives as long as the engine. */
L4_API l4_status l4_engine_get_info(const l4_engine* engine, l4_engine_info* info);

/* Compare size and digest of every file with the manifest, without ONNX Runtime. L4_VERIFICATION_FAILED names the first
 * file that is another one. */
L4_API l4_status l4_verify(const char* directory);

/* ---- Sampling ---------------------------------------------------------------------------------------------------- */

/* Change the scores [vocab] of a row in place, before temperature and filters; -INFINITY forbids a token. `ids` are the
 * tokens of the row so far. Not 0: generation fails with L4_BAD_INPUT. */
typedef int (*l4_logits_processor)(void* user, const int32_t* ids, size_t count, float* scores, size_t vocab);

/* How the next token is chosen: the steps of the Python runtime's `Sampling`, with the same tokens for the same seed.
 *
 * Repetition penalty, then the processor; with temperature 0 the likeliest token; else the logits are divided by the
 * temperature, top_k, top_p and min_p leave some, and number `draw` of random stream `stream` of the seed takes one. */
typedef struct l4_sampling {
  size_t size;
  double temperature;        /* 0: greedy */
  double top_p;              /* above 0 and up to 1; 1 keeps every token */
  double min_p;              /* 0 to 1; 0 keeps every token */
  double repetition_penalty; /* above 0; 1 changes nothing */
  int64_t top_k;             /* 0 keeps every token */
  int32_t has_seed;          /* 0: a seed that nobody can foresee is taken */
  uint64_t seed;
  uint64_t stream; /* of the seed's random streams */
  l4_logits_processor processor;
  void* user;
} l4_sampling;

#define L4_SAMPLING_DEFAULT {sizeof(l4_sampling), 0.0, 1.0, 0.0, 1.0, 0, 0, 0, 0, NULL, NULL}

typedef struct l4_logprob {
  int32_t token;
  double logprob; /* natural logarithm, of the logits as the engine gives them */
} l4_logprob;

/* What generation_config.json says of sampling, greedy if nothing. Nothing uses it unless it is asked for. */
L4_API l4_status l4_recommended_sampling(const char* directory, l4_sampling* out);

/* Choose a token for logits [vocab]. `ids` are the row's tokens so far, for penalty and processor; without `has_seed`
 * the seed is 0. */
L4_API l4_status l4_sample(const float* logits, size_t vocab, const l4_sampling* sampling, uint64_t draw,
                           const int32_t* ids, size_t count, int32_t* token);

/* Of logits [vocab], the log probability of `token`, and the `top` likeliest tokens, likeliest first. `top` is at most
 * `vocab`; `likeliest` has room for them and may be NULL where it is 0. */
L4_API l4_status l4_logprobs(const float* logits, size_t vocab, int32_t token, size_t top, double* logprob,
                             l4_logprob* likeliest);

/* A seed that nobody can foresee. */
L4_API l4_status l4_fresh_seed(uint64_t* out);

/* ---- Text -------------------------------------------------------------------------------------------------------- */

typedef struct l4_tokenizer l4_tokenizer;

/* Open the tokenizer of an engine or a checkpoint, with its chat templates: no engine and no ONNX Runtime is needed.
 * What this library cannot do exactly as the Python runtime does is refused by name. */
L4_API l4_status l4_tokenizer_open(const char* directory, l4_tokenizer** out);
L4_API void l4_tokenizer_close(l4_tokenizer* tokenizer);

typedef struct l4_tokenizer_info {
  size_t size;
  int32_t has_chat_template; /* whether a chat can be rendered */
  int32_t writes_user_text;  /* whether the default one writes what a user says; what it leaves out would be lost */
} l4_tokenizer_info;

L4_API l4_status l4_tokenizer_get_info(const l4_tokenizer* tokenizer, l4_tokenizer_info* info);

#define L4_ADD_SPECIAL_TOKENS 1u     /* what the tokenizer adds to a text (Llama 4: begin of text) */
#define L4_SPECIAL_TOKENS_AS_TEXT 2u /* special tokens that the text spells out stay text */

L4_API l4_status l4_tokenizer_encode(const l4_tokenizer* tokenizer, const char* text, size_t bytes, uint32_t flags,
                                     int32_t* ids, size_t capacity, size_t* count);
/* Bytes that are no UTF-8 give U+FFFD, ids without a token nothing. */
L4_API l4_status l4_tokenizer_decode(const l4_tokenizer* tokenizer, const int32_t* ids, size_t count, int skip_special,
                                     char* text, size_t capacity, size_t* bytes);
/* The id of a token as it stands in the vocabulary, such as "<|eot|>"; -1 if there is none. */
L4_API l4_status l4_tokenizer_token_id(const l4_tokenizer* tokenizer, const char* token, int32_t* id);

/* A chat as JSON: {"messages": [...], "add_generation_prompt": true, "tools": [...], "chat_template": "name", and other
 * variables that the template sees}. Only `messages` must be there. A message has "role" and "content", a text or a
 * list of parts {"type": "text", "text": ...} and {"type": "image"}. Render it with the checkpoint's chat template. */
L4_API l4_status l4_tokenizer_render_chat(const l4_tokenizer* tokenizer, const char* chat, size_t chat_bytes,
                                          char* text, size_t capacity, size_t* bytes);
/* The ids of that text; each image is one token <|image|>, which `l4_images_expand` replaces. */
L4_API l4_status l4_tokenizer_encode_chat(const l4_tokenizer* tokenizer, const char* chat, size_t chat_bytes,
                                          uint32_t flags, int32_t* ids, size_t capacity, size_t* count);

/* Text from tokens that come one at a time, up to the first stop string: whole characters, nothing of a stop string. */
typedef struct l4_text_stream l4_text_stream;

L4_API l4_status l4_text_stream_create(const l4_tokenizer* tokenizer, const char* const* stop_strings, size_t count,
                                       l4_text_stream** out);
/* Take a token. `text` is what it completes, good until the stream's next call; `stopped` (may be NULL) is the index of
 * the stop string that ended the text, or -1. */
L4_API l4_status l4_text_stream_push(l4_text_stream* stream, int32_t token, const char** text, size_t* bytes,
                                     int32_t* stopped);
/* No more tokens come: what was held back. */
L4_API l4_status l4_text_stream_flush(l4_text_stream* stream, const char** text, size_t* bytes, int32_t* stopped);
L4_API void l4_text_stream_close(l4_text_stream* stream);

/* ---- Images ------------------------------------------------------------------------------------------------------ */

typedef struct l4_images l4_images; /* the tiles of some images, as the vision tower takes them */

typedef struct l4_picture {
  size_t size;
  const uint8_t* rgb; /* [height, width, 3], rows one behind the other */
  int64_t width, height;
} l4_picture;

typedef struct l4_image_info {
  size_t size;
  int32_t rows, columns; /* of tiles, the global one not counted */
  int32_t tiles;         /* with the global one */
  int64_t tokens;        /* of a prompt that the image takes */
  const char* digest;    /* SHA-256 of its tiles, 64 hexadecimal digits and a zero; lives as long as the images */
} l4_image_info;

/* Resize, cut and normalise pictures as the checkpoint in `directory` says, bit for bit as the Python runtime does.
 * `max_tiles`: the most tiles into which an image is cut, 0: as the checkpoint says. */
L4_API l4_status l4_images_create(const char* directory, const l4_picture* pictures, size_t count, int32_t max_tiles,
                                  l4_images** out);
L4_API void l4_images_close(l4_images* images);
L4_API size_t l4_images_count(const l4_images* images);
L4_API l4_status l4_images_get_info(const l4_images* images, size_t index, l4_image_info* info);
/* All tiles, float32 [tiles, 3, T, T]; live as long as the images. */
L4_API l4_status l4_images_tiles(const l4_images* images, const float** values, size_t* tiles, size_t* side);
/* Replace each <|image|> in `ids` by the tokens of its image, in order. `images` may be NULL: then there must be
 * none. */
L4_API l4_status l4_images_expand(const l4_images* images, const l4_tokenizer* tokenizer, const int32_t* ids,
                                  size_t id_count, int32_t* expanded, size_t capacity, size_t* count);
/* Free what the engine keeps of images; an image that is shown again is computed again. */
L4_API l4_status l4_engine_forget_images(l4_engine* engine);

/* ---- Sessions ---------------------------------------------------------------------------------------------------- */

typedef struct l4_session l4_session; /* the KV cache of some rows of tokens */

typedef struct l4_session_options {
  size_t size;
  int32_t rows;
  int64_t capacity;      /* tokens that a row can hold; 0: up to the engine's max_context */
  const int64_t* starts; /* position of each row's first token, [rows]; NULL: 0 */
} l4_session_options;

#define L4_SESSION_OPTIONS_DEFAULT {sizeof(l4_session_options), 1, 0, NULL}

typedef struct l4_session_info {
  size_t size;
  int32_t rows;
  int64_t capacity;  /* tokens that a row can hold */
  uint64_t kv_bytes; /* of the buffers that hold keys and values */
} l4_session_info;

typedef struct l4_row_info {
  size_t size;
  int64_t length;   /* tokens that the row holds */
  int64_t start;    /* position of its first token */
  int64_t position; /* of its next token */
} l4_row_info;

/* New tokens of one row. */
typedef struct l4_row_tokens {
  size_t size;
  int32_t row;
  const int32_t* ids;
  size_t count;
  const l4_images* images; /* those that the tokens show, all of them; NULL: none */
} l4_row_tokens;

L4_API l4_status l4_session_create(l4_engine* engine, const l4_session_options* options, l4_session** out);
L4_API void l4_session_close(l4_session* session);
L4_API l4_status l4_session_get_info(const l4_session* session, l4_session_info* info);
L4_API l4_status l4_session_row(const l4_session* session, int32_t row, l4_row_info* info);
L4_API l4_status l4_session_token_ids(const l4_session* session, int32_t row, int32_t* ids, size_t capacity,
                                      size_t* count);

/* Feed new tokens, of several rows together where that is exact. A row that is not named, or has none, stays as it is.
 *
 * `logits` gets float32 [rows of the session, positions, vocab], good until the session's next call; `positions` is
 * that of the row with the most new tokens, or 1 with `last_only`. Entries that belong to no new token are NaN.
 * `logits` and `positions` may be NULL. An append that fails or is cancelled leaves the session as it was. */
L4_API l4_status l4_session_append(l4_session* session, const l4_row_tokens* tokens, size_t count, int last_only,
                                   const float** logits, size_t* positions);

/* Forget the last tokens[row] tokens of every row. In layout "chunked" a row can go back within its chunk and to any
 * chunk's beginning; no row can go back into an image. */
L4_API l4_status l4_session_rewind(l4_session* session, const int64_t* tokens);
/* The same for one row; its whole length empties it. */
L4_API l4_status l4_session_rewind_row(l4_session* session, int32_t row, int64_t tokens);
/* Forget every token; the buffers stay. */
L4_API l4_status l4_session_reset(l4_session* session);
/* A new session with copies of `rows` of this one, [count]; NULL: all of them. */
L4_API l4_status l4_session_fork(l4_session* session, const int32_t* rows, size_t count, l4_session** out);
/* Make a row the copy of a row of the same or of another session of the engine with the same start. The source is only
 * read. */
L4_API l4_status l4_session_copy_row(l4_session* session, int32_t row, l4_session* source, int32_t source_row);
/* One file format for all runtimes. A file that was there is replaced in one step. */
L4_API l4_status l4_session_save(l4_session* session, const char* path);
L4_API l4_status l4_session_load(l4_engine* engine, const char* path, l4_session** out);
/* End the call that runs on this session, also during a prompt: it returns L4_CANCELLED and the session is as before
 * that call (of a generation: as after its last token). Without such a call nothing happens. */
L4_API void l4_session_cancel(l4_session* session);

/* ---- Generation -------------------------------------------------------------------------------------------------- */

typedef struct l4_prompt { /* of one row of a session; one without ids takes no part */
  size_t size;
  const int32_t* ids;
  size_t count;
  const l4_images* images;
  const l4_sampling* sampling; /* NULL: greedy */
} l4_prompt;

typedef struct l4_token { /* a token that was chosen */
  size_t size;
  int32_t row;
  int32_t id;
  const char* text; /* what it completes; nothing without a tokenizer */
  size_t text_bytes;
  const char* finish_reason; /* "stop token", "stop string", "max_new_tokens", "max_context"; NULL: it goes on */
  double logprob;            /* where they were asked for */
  const l4_logprob* top;
  size_t top_count;
} l4_token;

#define L4_CONTINUE 0
#define L4_STOP_ROW 1

/* Called for each token on the generating thread; what `token` points to is good during the call. L4_STOP_ROW ends the
 * row. The session must not be used but by `l4_session_cancel`. */
typedef int (*l4_on_token)(void* user, const l4_token* token);

typedef struct l4_generate_options {
  size_t size;
  int64_t max_new_tokens;
  const int32_t* stop_token_ids; /* NULL: the model's end-of-sequence tokens */
  size_t stop_token_count;
  const l4_tokenizer* tokenizer; /* for text and stop strings; NULL: ids alone */
  const char* const* stop_strings;
  size_t stop_string_count;
  int64_t logprobs; /* how many of the likeliest tokens are told with each token; -1: no log probabilities */
} l4_generate_options;

#define L4_GENERATE_OPTIONS_DEFAULT {sizeof(l4_generate_options), 64, NULL, 0, NULL, NULL, 0, -1}

/* Continue `count` prompts, one for each row of the session, until every row has ended. Afterwards the session holds
 * the prompts and the new tokens but the last of each row. */
L4_API l4_status l4_session_generate(l4_session* session, const l4_prompt* prompts, size_t count,
                                     const l4_generate_options* options, l4_on_token on_token, void* user);

/* The same, a step at a time. */
typedef struct l4_generation l4_generation;

L4_API l4_status l4_generation_start(l4_session* session, const l4_prompt* prompts, size_t count,
                                     const l4_generate_options* options, l4_generation** out);
/* Choose a token for every row that runs. `tokens` gets `count` of them, 0 when all rows have ended; good until the
 * next call. A step that fails or is cancelled can be asked for again. */
L4_API l4_status l4_generation_next(l4_generation* generation, const l4_token** tokens, size_t* count);
/* End a row now. */
L4_API l4_status l4_generation_stop(l4_generation* generation, int32_t row);
L4_API void l4_generation_close(l4_generation* generation);

#ifdef __cplusplus
}
#endif
#endif
