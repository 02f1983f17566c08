"""Public originals that can be fetched: address, checksum, licence and citation.

Checksums and sizes are of the published file at the named commit or release, so a
copy fetched years ago and one fetched today are the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

_RAW = "https://raw.githubusercontent.com/{repo}/{commit}/{path}"
_RELEASE = "https://github.com/{repo}/releases/download/{commit}/{path}"


@dataclass(frozen=True, slots=True)
class Original:
    """A published file."""

    url: str
    sha256: str
    licence: str
    citation: str
    about: str
    size_bytes: int | None = None
    """None where no source states it."""
    repo: str = ""
    commit: str = ""
    path: str = ""

    @property
    def file_name(self) -> str:
        """Name of the file at its source."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class _Source:
    """A repository at one commit, or a release of it, and how to cite it."""

    repo: str
    commit: str
    licence: str
    citation: str
    url: str = _RAW

    def file(
        self, path: str, sha256: str, size_bytes: int | None, about: str
    ) -> Original:
        """One of its files."""
        return Original(
            self.url.format(repo=self.repo, commit=self.commit, path=path),
            sha256, self.licence, self.citation, about, size_bytes,
            self.repo, self.commit, path,
        )  # fmt: skip


_AZURE = _Source(
    "Azure/AzurePublicDataset",
    "b469a113cedca53ddc3bdea71a143dc4b7d8700c",
    "CC-BY-4.0",
    "Patel et al., Splitwise: Efficient Generative LLM Inference Using Phase "
    "Splitting, ISCA 2024",
)
_MOONCAKE = _Source(
    "kvcache-ai/Mooncake",
    "3b5a594133958449a1feaf1c9e0fc1b553e34a28",
    "Apache-2.0",
    "Qin et al., Mooncake: Trading More Storage for Less Computation, FAST 2025",
)
_BURSTGPT = _Source(
    "HPMLL/BurstGPT",
    "v1.1",
    "CC-BY-4.0",
    "Wang et al., BurstGPT, https://github.com/HPMLL/BurstGPT",
    _RELEASE,
)
_FASTCHAT = _Source(
    "lm-sys/FastChat",
    "0e6d3e4beaab66f4d3f93db72541a4abab8af28d",
    "Apache-2.0",
    "Zheng et al., Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena, NeurIPS "
    "2023",
)
_SARATHI = _Source(
    "microsoft/sarathi-serve",
    "72339db5b120614033b317880ad3a05a5e4c9415",
    "Apache-2.0",
    "Agrawal et al., Taming Throughput-Latency Tradeoff in LLM Inference with "
    "Sarathi-Serve, OSDI 2024",
)
_HUMANEVAL = _Source(
    "openai/human-eval",
    "6d43fb980f9fee3c892a914eda09951f772ad10d",
    "MIT",
    "Chen et al., Evaluating Large Language Models Trained on Code, 2021",
)

CATALOGUE: dict[str, Original] = {
    "azure-2023-conv": _AZURE.file(
        "data/AzureLLMInferenceTrace_conv.csv",
        "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
        719_188,
        "Azure LLM inference 2023, conversation: 19,366 requests in an hour",
    ),
    "azure-2023-code": _AZURE.file(
        "data/AzureLLMInferenceTrace_code.csv",
        "54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6",
        320_117,
        "Azure LLM inference 2023, code: 8,819 requests in an hour",
    ),
    "mooncake-conversation": _MOONCAKE.file(
        "FAST25-release/traces/conversation_trace.jsonl",
        "b8cbb061a85206d729d91cdc2981f43c9e0d99209dce588d3af5f7934408b9df",
        3_029_533,
        "Mooncake conversation: 12,031 requests with prefix blocks",
    ),
    "mooncake-synthetic": _MOONCAKE.file(
        "FAST25-release/traces/synthetic_trace.jsonl",
        "bd070915a98fc0ed264d7cfef2ce746002eb3076a695ec31ba2674c0111ec131",
        1_136_313,
        "Mooncake synthetic: 3,993 requests with prefix blocks",
    ),
    "mooncake-toolagent": _MOONCAKE.file(
        "FAST25-release/traces/toolagent_trace.jsonl",
        "48a2db1a13d3bc05e6330140c64f604ba366df20d3c9e128b5c35a01c1fa5f71",
        None,
        "Mooncake tools and agents: 23,608 requests with prefix blocks",
    ),
    "sharegpt-lengths": _SARATHI.file(
        "data/processed_traces/sharegpt_8k_filtered_stats_llama2_tokenizer.csv",
        "6d6c296302a853e2669a674a96f269283e60c57e60363bd450588a1066919f9f",
        949_600,
        "ShareGPT token counts, 30,731 turns up to 8,192 tokens, no text",
    ),
    "sharegpt-dummy": _FASTCHAT.file(
        "data/dummy_conversation.json",
        "534c5a1079f2eb61ff96633330ce87c4743f5b6d5b1691b44a65920473540470",
        234_166,
        "500 made-up conversations in ShareGPT's layout",
    ),
    "mt-bench": _FASTCHAT.file(
        "fastchat/llm_judge/data/mt_bench/question.jsonl",
        "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
        48_929,
        "MT-bench: 80 conversations of two turns, with text",
    ),
    "humaneval": _HUMANEVAL.file(
        "data/HumanEval.jsonl.gz",
        "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
        44_877,
        "HumanEval: 164 code prompts, with text",
    ),
    "burstgpt-1": _BURSTGPT.file(
        "BurstGPT_1.csv",
        "4bb3783693d0a435686fbfc885615d2349bd067239079fa4b749f2e679e12122",
        52_283_111,
        "BurstGPT, first two months: 1.43 million requests",
    ),
    "burstgpt-2": _BURSTGPT.file(
        "BurstGPT_2.csv",
        "44bf5942b03fca42c01a226a545ad3a750ec62688faecd67b6831c56a8928bf7",
        144_819_209,
        "BurstGPT, second two months: 3.86 million requests",
    ),
    "burstgpt-1-without-fails": _BURSTGPT.file(
        "BurstGPT_without_fails_1.csv",
        "a4d068a7113ec0290e74063a1b3447dc6001a30e4298eb313581b71006dda1f4",
        51_429_517,
        "BurstGPT, first two months, requests that failed left out",
    ),
    "burstgpt-2-without-fails": _BURSTGPT.file(
        "BurstGPT_without_fails_2.csv",
        "56193aa9b2bb26128ded43d2d29a960df6bf5af062bcfc9b005f3fcaa4e6e501",
        142_376_815,
        "BurstGPT, second two months, requests that failed left out",
    ),
}


def by_sha256(sha256: str) -> Original | None:
    """The original with these bytes, whatever the file is called."""
    for original in CATALOGUE.values():
        if original.sha256 == sha256:
            return original
    return None
