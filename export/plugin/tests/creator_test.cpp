// What the library offers, and plugins made from a node's attributes.
#include <cmath>

#include "fixtures.h"

namespace {

TEST(the_library_offers_one_creator_under_the_operators_name) {
  CHECK_EQUAL(std::string(creator().getPluginName()), "BilateralAttention");
  CHECK_EQUAL(std::string(creator().getPluginNamespace()), "ai.bilateral");
  CHECK_EQUAL(std::string(creator().getPluginVersion()), "1");
  CHECK_EQUAL(std::string(creator().getInterfaceInfo().kind), "PLUGIN CREATOR_V3ONE");
}

TEST(the_creator_names_every_attribute_with_its_type) {
  const PluginFieldCollection* fields = creator().getFieldNames();
  CHECK_EQUAL(fields->nbFields, 6);
  const Attributes attributes;
  const auto expected = attributes.fields();
  for (int32_t i = 0; i < fields->nbFields; ++i) {
    const auto index = static_cast<size_t>(i);
    CHECK_EQUAL(std::string(fields->fields[i].name), expected[index].name);
    CHECK(fields->fields[i].type == expected[index].type);
  }
}

TEST(the_plugin_has_the_creators_name_and_all_capabilities) {
  const PluginPointer plugin = create(Attributes{});
  CHECK(plugin != nullptr);
  CHECK_EQUAL(std::string(core(plugin).getPluginName()), creator().getPluginName());
  CHECK_EQUAL(std::string(core(plugin).getPluginNamespace()), creator().getPluginNamespace());
  CHECK_EQUAL(std::string(core(plugin).getPluginVersion()), creator().getPluginVersion());
  CHECK_EQUAL(build(plugin).getNbOutputs(), 1);
}

TEST(integers_of_64_bits_and_doubles_are_read_too) {
  const int64_t one = 1;
  const double scale = 0.5;
  const Attributes attributes;
  auto fields = attributes.fields();
  fields[0] = {"scale", &scale, PluginFieldType::kFLOAT64, 1};
  fields[3] = {"query_prefix", &one, PluginFieldType::kINT64, 1};
  const PluginFieldCollection collection{static_cast<int32_t>(fields.size()), fields.data()};
  const Attention attention = bilateral::attentionFromFields(collection);
  CHECK_EQUAL(attention.scale, 0.5F);
  CHECK_EQUAL(attention.queryPrefix, 1);
}

TEST(a_string_may_count_its_terminating_zero) {
  const Attributes attributes;
  auto fields = attributes.fields();
  fields[1].length += 1;
  CHECK(create(fields) != nullptr);
}

TEST(attributes_that_are_missing_unknown_or_out_of_range_are_refused_by_name) {
  setLoggerFinder(&loggerFinder());
  for (size_t missing = 0; missing < 6; ++missing) {
    auto fields = Attributes{}.fields();
    const std::string name = fields[missing].name;
    fields.erase(fields.begin() + static_cast<std::ptrdiff_t>(missing));
    CHECK(create(fields) == nullptr);
    CHECK(logged("node attention") && logged(name) && logged("missing"));
  }
  struct Bad {
    Attributes attributes;
    const char* name = nullptr;
  };
  std::vector<Bad> wrong(6);
  wrong[0].attributes.scale = NAN, wrong[0].name = "scale";
  wrong[1].attributes.range = "linear", wrong[1].name = "linear";
  wrong[2].attributes.spatial = "", wrong[2].name = "spatial_kernel";
  wrong[3].attributes.queryPrefix = -1, wrong[3].name = "query_prefix";
  wrong[4].attributes.keyPrefix = -2, wrong[4].name = "key_prefix";
  wrong[5].attributes.causal = 2, wrong[5].name = "causal";
  for (const Bad& bad : wrong) {
    CHECK(create(bad.attributes) == nullptr);
    CHECK(logged(bad.name));
  }
  auto fields = Attributes{}.fields();
  fields[0].type = PluginFieldType::kINT8;
  CHECK(create(fields) == nullptr);
  CHECK(logged("scale is not a float"));
  setLoggerFinder(nullptr);
}

TEST(the_library_says_what_it_holds) {
  const std::string contents = bilateralPluginContents();
  CHECK(contents.find("\"version\": \"1\"") != std::string::npos);
  CHECK(contents.find("[80, 86, 89, 90, 100, 120]") != std::string::npos);
}

}  // namespace
